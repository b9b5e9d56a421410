"""A call of the service on a manual clock, and the events that it yields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.service.call import Call
from pipecat_personaplex.service.call_events import Event, SessionStarted
from tests.helpers.engines import FakeEngine, FakeSession

ANNA = Persona("NATF2", "Anna")
SAMPLING = SamplingParams()
FRAME = np.full(FRAME_SAMPLES, 0.5, dtype=np.float32)


def started(session: FakeSession) -> SessionStarted:
    return SessionStarted(session.persona, session.id)


class CallRun:
    """A call with a manual clock, and the events it has yielded."""

    def __init__(self, fake: FakeEngine):
        self.now = 0.0
        self.call = Call(fake, lambda: self.now)
        self.events: list[Event] = []
        self._waiting = self.call.events()

    async def next(self) -> Event:
        event = await asyncio.wait_for(anext(self._waiting), 10)
        self.events.append(event)
        return event

    async def until(self, expected: Event) -> None:
        while await self.next() != expected:
            pass

    async def rest(self) -> list[Event]:
        async with asyncio.timeout(10):
            return [event async for event in self._waiting]

    def push_frame(self) -> None:
        self.now += 0.08
        self.call.push_audio(FRAME)

    async def next_frame(self) -> SessionFrame:
        event = await self.next()
        assert isinstance(event, SessionFrame)
        return event


@asynccontextmanager
async def active_call(fake: FakeEngine) -> AsyncIterator[CallRun]:
    """A call whose first session (Anna) is active."""
    run = CallRun(fake)
    run.call.open(ANNA, SAMPLING)
    run.call.tick()
    assert await run.next() == started(fake.sessions[0])
    yield run
    run.call.close()
    run.call.close()
    assert not fake.open_sessions
