"""An engine without a model: what it hears is what it says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFull,
    PersonaPlexError,
    SessionFailed,
    VoiceNotFound,
)
from pipecat_personaplex.interface import FrameTimings, SessionFrame, SessionStats, new_session_id

_CODES = np.zeros(CODEBOOKS, dtype=np.int64)


class FakeSession:
    """A session whose agent repeats its caller, and says ``pieces`` in the transcript.

    ``gain`` tells the voices of two sessions apart.
    """

    def __init__(
        self,
        engine: FakeEngine,
        persona: Persona,
        sampling: SamplingParams,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None,
        on_end: Callable[[PersonaPlexError | None], object] | None,
    ):
        self.id = new_session_id()
        self.persona = persona
        self.sampling = sampling
        self.said: list[str] = []
        self.pieces: list[str] = []
        self.gain = 1.0
        self.dropped_frames = 0
        self.error: PersonaPlexError | None = None
        self.closed = False
        self._engine = engine
        self._on_frame = on_frame
        self._on_end = on_end
        self._on_ready = on_ready
        self._ended = threading.Event()
        self._partial = np.zeros(0, dtype=np.float32)
        self.heard: list[Pcm] = []
        self._answered = 0

    def push(self, pcm: Pcm) -> None:
        if self.closed:
            raise self.error or SessionFailed("the session is closed")
        self.heard.append(pcm)
        self._engine.do(lambda: self._answer(pcm))

    def say(self, text: str) -> None:
        if not text.strip():
            raise ConfigError("nothing to say")
        self.said.append(text)
        self.pieces += [f" {word}" for word in text.split()]

    def update(self, sampling: SamplingParams) -> None:
        self.sampling = sampling

    def wait_ended(self, timeout: float | None = None) -> bool:
        return self._ended.wait(timeout)

    def stats(self) -> SessionStats:
        waiting = len(self.heard) - self._answered - self.dropped_frames
        return SessionStats(self._answered, 0, self.dropped_frames, waiting)

    def close(self) -> None:
        self.closed = True
        self._engine.do(lambda: self.end(None))

    def make_ready(self) -> None:
        # At once, even while a step is held: another session's frames may wait as long.
        if self._on_ready is not None and not self.closed:
            self._on_ready()

    def fail(self, error: PersonaPlexError) -> None:
        self._engine.do(lambda: self.end(error))

    def end(self, error: PersonaPlexError | None) -> None:
        """On the engine's thread."""
        if self._ended.is_set():
            return
        self.error, self.closed = error, True
        if self._on_end is not None:
            self._on_end(error)
        self._ended.set()

    def _answer(self, pcm: Pcm) -> None:
        self._partial = np.concatenate([self._partial, pcm])
        while len(self._partial) >= FRAME_SAMPLES:
            frame, self._partial = np.split(self._partial, [FRAME_SAMPLES])
            self._engine.step.wait(10)
            piece = self.pieces.pop(0) if self.pieces else ""
            step_ms = self._engine.step_ms
            answer = SessionFrame(
                index=self._answered,
                pcm=frame * np.float32(self.gain),
                text=piece,
                text_token=7 if piece else 3,
                agent_codes=_CODES,
                user_codes=_CODES,
                timings=FrameTimings(queued_ms=0.5, step_ms=step_ms),
            )
            self._answered += 1
            # A closed session of the real engine is silent; this one talks on, so that tests see
            # whether anybody listens.
            self._on_frame(answer)


class FakeEngine:
    """Sessions on one thread. ``step`` cleared holds every answer back.

    Args:
        max_sessions: Slots.
        voices: Names that personas may use.
        ready: Whether a session is ready as soon as it is opened; else ``make_ready``.
    """

    def __init__(
        self,
        max_sessions: int = 4,
        voices: Sequence[str] = ("NATF2", "NATM1"),
        *,
        ready: bool = True,
    ):
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
    ) -> FakeSession:
        if persona.voice not in self._voices:
            raise VoiceNotFound(persona.voice, known=self._voices)
        if len(self.open_sessions) >= self.max_sessions:
            raise EngineFull(self.max_sessions)
        session = FakeSession(
            self, persona, sampling or SamplingParams(), on_frame, on_ready, on_end
        )
        self.sessions.append(session)
        self.on_open(session)
        if self.ready:
            session.make_ready()
        return session

    def fail(self, error: PersonaPlexError) -> None:
        """Every session ends, as when the device fails."""
        for session in self.open_sessions:
            session.fail(error)

    def do(self, work: Callable[[], object]) -> None:
        self._work.put(work)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


def says(*pieces: str) -> Callable[[FakeSession], object]:
    return lambda session: session.pieces.extend(pieces)
