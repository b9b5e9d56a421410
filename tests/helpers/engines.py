"""An engine without a model that echoes the caller's audio."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, FRAME_SECONDS
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFull,
    PersonaPlexError,
    SessionFailed,
    UserError,
    VoiceNotFound,
)
from pipecat_personaplex.interface import (
    ALL_FEATURES,
    MAX_HOLD_SECONDS,
    CallHistory,
    Feature,
    FrameTimings,
    SessionFrame,
    SessionStats,
    Speech,
    new_session_id,
)

_CODES = np.zeros(CODEBOOKS, dtype=np.int64)
_HISTORY_AUDIO_FRAMES = 32

PromptDone = Callable[[PersonaPlexError | None], object]


class _Word(str):
    """A piece of the inner monologue that belongs to a speech."""

    speech: Speech

    @classmethod
    def of(cls, speech: Speech, text: str) -> _Word:
        word = cls(f" {text}")
        word.speech = speech
        return word


class FakeSession:
    """A session that echoes its input, with ``pieces`` as its inner monologue.

    Each frame speaks one piece; a word of a speech counts as spoken in its frame. While held, only
    words of speeches are spoken.

    Attributes:
        features: What the session can do; the other methods raise ``ConfigError``.
        gain: Factor of the echo; tells the voices of two sessions apart.
        heard: Audio pushed so far.
        said: Forced texts so far.
        said_when: The argument ``when`` of each of them.
        speeches: Their handles.
        pieces: Text pieces of the next frames.
        hushed: Speeches that ``hush`` has cut, in order.
        holds: Seconds of each ``hold`` so far; 0 for a ``release``.
        prompts: Personas of ``update_prompt`` so far.
        prompt_history: The argument ``history`` of each of them.
        opened_with: The history with which the session was opened.
    """

    def __init__(
        self,
        engine: FakeEngine,
        persona: Persona,
        sampling: SamplingParams,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None,
        on_end: Callable[[PersonaPlexError | None], object] | None,
        history: CallHistory | None = None,
    ):
        self.id = new_session_id()
        self.persona = persona
        self.sampling = sampling
        self.features = engine.features
        self.said: list[str] = []
        self.said_when: list[str] = []
        self.speeches: list[Speech] = []
        self.pieces: list[str] = []
        self.hushed: list[Speech] = []
        self.holds: list[float] = []
        self.prompts: list[Persona] = []
        self.prompt_history: list[int | None] = []
        self.opened_with = history
        self.gain = 1.0
        self.dropped_frames = 0
        self.error: PersonaPlexError | None = None
        self.closed = False
        self._engine = engine
        self._on_frame = on_frame
        self._on_end = on_end
        self._on_ready = on_ready
        self._ended = threading.Event()
        self._buffer = FrameBuffer()
        self.heard: list[Pcm] = []
        self._frames = 0
        # Guards pieces and speeches, which callers and the engine's thread both change.
        self._lock = threading.RLock()
        self._held_frames = 0
        self._on_done: dict[Speech, Callable[[Speech], object]] = {}
        self._new_prompt: tuple[Persona, PromptDone | None] | None = None
        self._tokens = list(history.tokens) if history is not None else []
        self._caller: list[Pcm] = []
        if history is not None:
            self._caller.extend(history.caller.reshape(-1, FRAME_SAMPLES))

    def push(self, pcm: Pcm) -> None:
        self._require_open()
        self.heard.append(pcm)
        self._engine.do(lambda: self._step(pcm))

    def say(
        self,
        text: str,
        *,
        when: str = "pause",
        on_done: Callable[[Speech], object] | None = None,
    ) -> Speech:
        self._require("say")
        if not text.strip():
            raise ConfigError("nothing to say")
        words = text.split()
        speech = Speech(text, len(words))
        with self._lock:
            self.said.append(text)
            self.said_when.append(when)
            self.speeches.append(speech)
            if on_done is not None:
                self._on_done[speech] = on_done
            self.pieces += [_Word.of(speech, word) for word in words]
        return speech

    def hush(self, speech: Speech | None = None) -> list[Speech]:
        self._require("say")
        with self._lock:
            unsaid = [one for one in self.speeches if one.state in ("waiting", "speaking")]
            cut = [one for one in unsaid if speech in (None, one)]
            for one in cut:
                one.state = "cut"
                self._engine.do(lambda one=one: self._report(one))
            self.pieces[:] = [piece for piece in self.pieces if _speech_of(piece) not in cut]
            self.hushed += cut
        return cut

    def hold(self, seconds: float) -> None:
        self._require("hold")
        if not 0 <= seconds <= MAX_HOLD_SECONDS:
            raise ConfigError(f"a hold may last {MAX_HOLD_SECONDS:g} s, not {seconds}")
        self.holds.append(seconds)
        self._held_frames = math.ceil(seconds / FRAME_SECONDS)

    def release(self) -> None:
        self._require("hold")
        self.holds.append(0.0)
        self._held_frames = 0

    def update_prompt(
        self,
        persona: Persona,
        *,
        history: int | None = None,
        on_done: PromptDone | None = None,
    ) -> None:
        self._require("prompt")
        self._engine.require_voice(persona)
        self.prompts.append(persona)
        self.prompt_history.append(history)
        self.finish_prompt(UserError("a later prompt replaced this one"))
        self._new_prompt = persona, on_done
        if self._engine.ready:
            self.finish_prompt()

    def finish_prompt(self, error: PersonaPlexError | None = None) -> None:
        """Put the prompt of ``update_prompt`` into effect, or fail it; does nothing without one."""
        new, self._new_prompt = self._new_prompt, None
        if new is None:
            return
        persona, on_done = new
        if error is None:
            self.persona = persona
        if on_done is not None:
            self._engine.do(lambda: on_done(error))

    def history(self) -> CallHistory:
        if "history" not in self.features:
            raise ConfigError("not supported")
        tokens = np.array(self._tokens, dtype=np.int16).reshape(-1, 1 + 2 * CODEBOOKS)
        caller = self._caller[-_HISTORY_AUDIO_FRAMES:]
        return CallHistory(tokens, np.concatenate(caller or [np.empty(0, np.float32)]))

    def update(self, sampling: SamplingParams) -> None:
        self._require("sampling")
        self.sampling = sampling

    def wait_ended(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def stats(self) -> SessionStats:
        waiting = len(self.heard) - self._frames - self.dropped_frames
        return SessionStats(self._frames, 0, self.dropped_frames, waiting)

    def close(self) -> None:
        self.closed = True
        self._engine.do(lambda: self.end(None))

    def make_ready(self) -> None:
        # On this thread: the engine's thread may wait in a step of another session.
        if self._on_ready is not None and not self.closed:
            self._on_ready()

    def fail(self, error: PersonaPlexError) -> None:
        self._engine.do(lambda: self.end(error))

    def end(self, error: PersonaPlexError | None) -> None:
        """Report the end once; runs on the engine's thread."""
        if self._ended.is_set():
            return
        self.error, self.closed = error, True
        with self._lock:
            for speech in self.speeches:
                if speech.state in ("waiting", "speaking"):
                    speech.state = "cut"
                self._report(speech)
        if self._on_end is not None:
            self._on_end(error)
        self._ended.set()

    def _require_open(self) -> None:
        if self.closed:
            raise self.error or SessionFailed("the session is closed")

    def _require(self, feature: Feature) -> None:
        if feature not in self.features:
            raise ConfigError(f"this engine does not support {feature}")
        self._require_open()

    def _report(self, speech: Speech) -> None:
        on_done = self._on_done.pop(speech, None)
        if on_done is not None:
            on_done(speech)

    def _next_piece(self) -> str:
        with self._lock:
            held, self._held_frames = self._held_frames > 0, max(0, self._held_frames - 1)
            allowed = (i for i, piece in enumerate(self.pieces) if not held or _speech_of(piece))
            index = next(allowed, None)
            if index is None:
                return ""
            piece = self.pieces.pop(index)
            speech = _speech_of(piece)
            if speech is not None:
                speech.spoken += 1
                speech.state = "said" if speech.spoken == speech.words else "speaking"
            return piece

    def _step(self, pcm: Pcm) -> None:
        for frame in self._buffer.push(pcm):
            self._engine.step.wait(10)
            piece = self._next_piece()
            step_ms = self._engine.step_ms
            output = SessionFrame(
                index=self._frames,
                pcm=frame * np.float32(self.gain),
                text=str(piece),
                text_token=7 if piece else 3,
                agent_codes=_CODES,
                user_codes=_CODES,
                timings=FrameTimings(queued_ms=0.5, step_ms=step_ms),
            )
            self._frames += 1
            self._tokens.append(np.array([output.text_token, *_CODES, *_CODES], np.int16))
            self._caller = [*self._caller[1 - _HISTORY_AUDIO_FRAMES :], frame]
            # Also after close, unlike the real engine: tests check that users ignore such frames.
            self._on_frame(output)
            speech = _speech_of(piece)
            if speech is not None and speech.state == "said":
                self._report(speech)


def _speech_of(piece: str) -> Speech | None:
    return piece.speech if isinstance(piece, _Word) else None


class FakeEngine:
    """Runs all sessions on one thread. Clear ``step`` to stop the output of all sessions.

    Args:
        max_sessions: Slots.
        voices: Names that personas may use.
        ready: Whether sessions are ready, and new prompts in effect, at once; else a test calls
            ``make_ready`` and ``finish_prompt``.
        features: What the sessions can do.
    """

    def __init__(
        self,
        max_sessions: int = 4,
        voices: Sequence[str] = ("NATF2", "NATM1"),
        *,
        ready: bool = True,
        features: frozenset[Feature] = ALL_FEATURES,
    ):
        self.features = features
        self.max_sessions = max_sessions
        self.max_in_flight_frames = 2
        self.ready = ready
        self.step = threading.Event()
        self.step.set()
        self.step_ms = 5.0
        self.sessions: list[FakeSession] = []
        self.on_open: Callable[[FakeSession], object] = lambda session: None
        self._voices = list(voices)
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeEngine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.step.set()
        self._work.put(None)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def voices(self) -> list[str]:
        return self._voices

    @property
    def open_sessions(self) -> list[FakeSession]:
        return [session for session in self.sessions if not session.closed]

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
        history: CallHistory | None = None,
    ) -> FakeSession:
        self.require_voice(persona)
        if len(self.open_sessions) >= self.max_sessions:
            raise EngineFull(self.max_sessions)
        session = FakeSession(
            self, persona, sampling or SamplingParams(), on_frame, on_ready, on_end, history
        )
        self.sessions.append(session)
        self.on_open(session)
        if self.ready:
            session.make_ready()
        return session

    def require_voice(self, persona: Persona) -> None:
        if persona.voice not in self._voices:
            raise VoiceNotFound(persona.voice, known=self._voices)

    def fail(self, error: PersonaPlexError) -> None:
        """End every session with an error, as a failed device does."""
        for session in self.open_sessions:
            session.fail(error)

    def do(self, work: Callable[[], object]) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def says(*pieces: str) -> Callable[[FakeSession], object]:
    """An ``on_open`` that sets the first pieces of a session's inner monologue."""
    return lambda session: session.pieces.extend(pieces)
