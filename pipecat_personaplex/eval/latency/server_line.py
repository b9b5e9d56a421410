"""A call to a server that ``personaplex serve`` or NVIDIA's server runs."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Self

import numpy as np

from pipecat_personaplex.audio import FrameBuffer, Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, SAMPLE_RATE, TEXT_PAD
from pipecat_personaplex.errors import PersonaPlexError, VoiceNotFound
from pipecat_personaplex.eval.latency.probe import Recorder
from pipecat_personaplex.interface import (
    STEP_BOUNDS_MS,
    EngineStats,
    Feature,
    FrameTimings,
    SessionFrame,
    SessionStats,
    new_session_id,
)
from pipecat_personaplex.remote.engine import RemoteEngine

_CODES = np.zeros(CODEBOOKS, np.int64)
_ECHO_VOICE = "ECHO"


class ServerLine:
    """A session on a server.

    Args:
        url: The server, such as ``ws://localhost:8998``.
        prompt: The agent's text prompt.
        voice: The agent's voice; the first one of the server if empty.
        api_key: For a server that requires one.

    Raises:
        PersonaPlexError: The server cannot be reached or refuses (when the call is opened).
    """

    rate = SAMPLE_RATE

    def __init__(self, url: str, prompt: str = "", voice: str = "", api_key: str | None = None):
        self.recorder = Recorder(self.rate)
        self._engine = RemoteEngine(url, api_key=api_key)
        self._prompt, self._voice = prompt, voice
        self._session: Any = None

    async def __aenter__(self) -> Self:
        """Connect."""
        try:
            await asyncio.to_thread(self._open)
        except BaseException:
            await asyncio.to_thread(self._engine.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()
        await asyncio.to_thread(self._engine.stop)

    async def send(self, chunk: Pcm) -> None:
        """Send 20 ms.

        Raises:
            SessionFailed: The session is over.
        """
        self._session.push(chunk)

    def _open(self) -> None:
        self._engine.start()
        voices = self._engine.voices
        voice = self._voice or next(iter(voices), "")
        if voices and voice not in voices:
            raise VoiceNotFound(voice, voices)
        self._session = self._engine.open_session(
            Persona(voice, self._prompt), on_frame=self._receive
        )

    def _receive(self, frame: SessionFrame) -> None:
        self.recorder.add(time.monotonic(), frame.pcm)


class _EchoSession:
    """A session whose agent repeats the caller at once."""

    features: frozenset[Feature] = frozenset()
    dropped_frames = 0

    def __init__(self, call: Callable[[Callable[[], object]], object], on_frame: Any, on_end: Any):
        self.id = new_session_id()
        self._call = call
        self._on_frame, self._on_end = on_frame, on_end
        self._buffer = FrameBuffer()
        self._frames = 0
        self._closed = threading.Event()

    def push(self, pcm: Pcm) -> None:
        for frame in self._buffer.push(pcm.copy()):
            self._call(partial(self._echo, frame))

    def _echo(self, pcm: Pcm) -> None:
        index, self._frames = self._frames, self._frames + 1
        timings = FrameTimings(0.0, 0.0)
        if not self._closed.is_set():
            self._on_frame(SessionFrame(index, pcm, "", TEXT_PAD, _CODES, _CODES, timings))

    def stats(self) -> SessionStats:
        return SessionStats(self._frames, 0, 0, 0)

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._call(lambda: self._on_end(None) if self._on_end else None)


class EchoEngine:
    """An engine without a model: the floor of a server and its protocol.

    A frame of 80 ms must be complete before it is returned, as with a model.

    Example::

        with EchoEngine() as engine:
            session = engine.open_session(Persona("ECHO"), on_frame=print)
    """

    features: frozenset[Feature] = frozenset()
    max_in_flight_frames = 2
    max_sessions = 4
    healthy = True

    def __init__(self) -> None:
        self.voices = [_ECHO_VOICE]
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="echo-engine", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._work.put(None)
        self._thread.join()

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
        history: object = None,
    ) -> _EchoSession:
        """Open a session; the persona does not matter."""
        session = _EchoSession(self._work.put, on_frame, on_end)
        if on_ready is not None:
            self._work.put(on_ready)
        return session

    def stats(self) -> EngineStats:
        """Zeros."""
        return EngineStats(
            healthy=True,
            sessions=0,
            queued_frames=0,
            max_sessions=self.max_sessions,
            steps=0,
            frames=0,
            late_frames=0,
            refused=0,
            step_p50_ms=0.0,
            step_p99_ms=0.0,
            step_seconds_total=0.0,
            step_histogram=(0,) * (len(STEP_BOUNDS_MS) + 1),
            prefix_hits=0,
            prefix_misses=0,
            prefix_bytes=0,
        )

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


@asynccontextmanager
async def server_echo() -> AsyncIterator[ServerLine]:
    """A call to an echo behind a real server in this process.

    Raises:
        ConfigError: A package of the server is not installed.
    """
    from pipecat_personaplex.eval.plugins import require_package

    for package in ("starlette", "uvicorn", "prometheus_client"):
        install = "pip install 'pipecat-personaplex[server]'"
        require_package("the echo server", package, install)
    from pipecat_personaplex.server.admission import AdmissionController
    from pipecat_personaplex.server.config import ServerConfig
    from pipecat_personaplex.server.runner import Address, ServerRunner
    from pipecat_personaplex.server.state import ServerState

    config = ServerConfig()
    state = ServerState(config, "echo", AdmissionController(config))
    runner = ServerRunner(state, Address(port=0), EchoEngine)  # type: ignore[arg-type]
    ready = threading.Event()
    thread = threading.Thread(target=runner.run, args=(lambda url: ready.set(),), daemon=True)
    thread.start()
    try:
        await asyncio.to_thread(ready.wait, 30)
        async with ServerLine(runner.url.replace("http", "ws", 1)) as line:
            yield line
    finally:
        while thread.is_alive():
            runner.stop()
            await asyncio.to_thread(thread.join, 0.2)
