"""A caller of a remote engine that records what it receives, and waiting on conditions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np
from loguru import logger

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.remote import RemoteEngine, RemoteSession

WAIT = 20.0
FRIEND = Persona("NATF2", "You enjoy having a good conversation.")


def tone(index: int) -> Pcm:
    """A frame that differs from those of all other indices and is exact in 16 bits."""
    return np.full(FRAME_SAMPLES, (index + 1) / 1024, dtype=np.float32)


class Caller:
    """A session with every callback recorded in order."""

    def __init__(
        self,
        engine: RemoteEngine,
        persona: Persona = FRIEND,
        sampling: SamplingParams | None = None,
    ):
        self.frames: list[SessionFrame] = []
        self.reports: SimpleQueue[object] = SimpleQueue()
        self.session: RemoteSession = engine.open_session(
            persona,
            sampling,
            on_frame=self._on_frame,
            on_ready=lambda: self.reports.put("ready"),
            on_end=self.reports.put,
        )

    def _on_frame(self, frame: SessionFrame) -> None:
        self.frames.append(frame)
        self.reports.put(frame)

    def next(self, timeout: float = WAIT) -> Any:
        return self.reports.get(timeout=timeout)

    def ready(self) -> Caller:
        assert self.next() == "ready"
        return self

    def talk(self, *indices: int) -> list[SessionFrame]:
        """Push these frames one by one, each after the output frame of the one before."""
        outputs = []
        for index in indices:
            self.session.push(tone(index))
            output = self.next()
            assert isinstance(output, SessionFrame), output
            outputs.append(output)
        return outputs

    def ended(self, timeout: float = WAIT) -> PersonaPlexError | None:
        """Wait for the end, skipping frames, and return its error."""
        while True:
            report = self.next(timeout)
            if report is None or isinstance(report, PersonaPlexError):
                assert self.session.wait_ended(WAIT)
                return report


def until(condition: Callable[[], object], timeout: float = WAIT) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.01)


@contextmanager
def log_lines() -> Iterator[list[tuple[str, str]]]:
    """Collect the log lines written meanwhile, each as (session id or "", message)."""
    lines: list[tuple[str, str]] = []

    def write(message: Any) -> None:
        record = message.record
        lines.append((record["extra"].get("session", ""), record["message"]))

    sink = logger.add(write, level="DEBUG", format="{message}")
    try:
        yield lines
    finally:
        logger.remove(sink)


def resuming(lines: list[tuple[str, str]], session: RemoteSession) -> bool:
    """Whether the log says that the client has noticed a broken connection of this session."""
    return any(
        session_id == session.id and "resuming the session" in message
        for session_id, message in lines
    )


class Done:
    """Records ``on_done`` calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, result: Any) -> None:
        self.calls.append(result)

    def wait(self, count: int = 1) -> list[Any]:
        until(lambda: len(self.calls) == count)
        return self.calls
