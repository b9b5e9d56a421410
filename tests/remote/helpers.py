"""A caller of a remote engine, and what it heard."""

from __future__ import annotations

import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.remote import RemoteEngine, RemoteSession

WAIT = 20.0
FRIEND = Persona("NATF2", "You enjoy having a good conversation.")


def tone(index: int) -> Pcm:
    """A frame that is like no other, and exact in 16 bits."""
    return np.full(FRAME_SAMPLES, (index + 1) / 1024, dtype=np.float32)


class Caller:
    """A session with everything that came out of it, in order."""

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
            on_frame=self._heard,
            on_ready=lambda: self.reports.put("ready"),
            on_end=self.reports.put,
        )

    def _heard(self, frame: SessionFrame) -> None:
        self.frames.append(frame)
        self.reports.put(frame)

    def next(self, timeout: float = WAIT) -> Any:
        return self.reports.get(timeout=timeout)

    def ready(self) -> Caller:
        assert self.next() == "ready"
        return self

    def talk(self, *indices: int) -> list[SessionFrame]:
        """Say these frames, each after the answer to the last."""
        answers = []
        for index in indices:
            self.session.push(tone(index))
            answer = self.next()
            assert isinstance(answer, SessionFrame), answer
            answers.append(answer)
        return answers

    def ended(self, timeout: float = WAIT) -> PersonaPlexError | None:
        """Wait for the end, past any frames."""
        while True:
            report = self.next(timeout)
            if report is None or isinstance(report, PersonaPlexError):
                assert self.session.wait_ended(WAIT)
                return report


def until(true: Callable[[], object], timeout: float = WAIT) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "it never was"
        time.sleep(0.01)
