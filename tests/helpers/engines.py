"""An engine without a model that echoes the caller's audio."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS
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
    """A session that echoes its input, with ``pieces`` as its inner monologue.

    Attributes:
        gain: Factor of the echo; tells the voices of two sessions apart.
        heard: Audio pushed so far.
        said: Forced texts so far.
        pieces: Text pieces of the next frames.
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
        self._buffer = FrameBuffer()
        self.heard: list[Pcm] = []
        self._frames = 0

    def push(self, pcm: Pcm) -> None:
        if self.closed:
            raise self.error or SessionFailed("the session is closed")
        self.heard.append(pcm)
        self._engine.do(lambda: self._step(pcm))

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
        if self._on_end is not None:
            self._on_end(error)
        self._ended.set()

    def _step(self, pcm: Pcm) -> None:
        for frame in self._buffer.push(pcm):
            self._engine.step.wait(10)
            piece = self.pieces.pop(0) if self.pieces else ""
            step_ms = self._engine.step_ms
            output = SessionFrame(
                index=self._frames,
                pcm=frame * np.float32(self.gain),
                text=piece,
                text_token=7 if piece else 3,
                agent_codes=_CODES,
                user_codes=_CODES,
                timings=FrameTimings(queued_ms=0.5, step_ms=step_ms),
            )
            self._frames += 1
            # Also after close, unlike the real engine: tests check that users ignore such frames.
            self._on_frame(output)


class FakeEngine:
    """Runs all sessions on one thread. Clear ``step`` to stop the output of all sessions.

    Args:
        max_sessions: Slots.
        voices: Names that personas may use.
        ready: Whether sessions are ready at once; else a test calls ``make_ready``.
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
