"""What happens to a call while it waits for the facts of its caller, before its first session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pipecat.frames.frames import EndFrame, LLMUpdateSettingsFrame, TTSTextFrame

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, errors, started

GREETING = "Good morning, this is Anna."


class Lookup:
    """Looks the caller up; a test decides when it is done."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.found = asyncio.Event()

    async def __call__(self, service: PersonaPlexLLMService) -> str:
        self.begun.set()
        await self.found.wait()
        return "The caller is Ann Lee."


@asynccontextmanager
async def grounding(
    engine: FakeEngine, clock: ManualClock
) -> AsyncIterator[tuple[PersonaPlexLLMService, RunningPipeline, Lookup]]:
    """A call that has begun and whose caller is being looked up."""
    lookup = Lookup()
    service = PersonaPlexLLMService(
        engine,
        greeting=GREETING,
        delegation=PersonaPlexLLMService.Delegation("clerk", ground=lookup),
        clock=clock,
    )
    async with RunningPipeline([service], clock=clock) as pipeline:
        await asyncio.wait_for(lookup.begun.wait(), 10)
        yield service, pipeline, lookup


async def test_an_invalid_setting_is_refused(fake: FakeEngine, clock: ManualClock) -> None:
    async with grounding(fake, clock) as (service, pipeline, lookup):
        events = Events(service)
        delta = service.Settings(temperature_audio=-1.0)
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: errors(pipeline))
        lookup.found.set()
        await started(pipeline, events)
        assert service.is_usable and len(errors(pipeline)) == 1
        assert fake.sessions[0].sampling == SamplingParams()
        await pipeline.cancel()


async def test_a_hang_up_opens_no_session(fake: FakeEngine, clock: ManualClock) -> None:
    async with grounding(fake, clock) as (_, pipeline, _):
        await pipeline.cancel()
    assert not fake.sessions and not errors(pipeline)


async def test_the_end_of_the_call_waits_for_the_greeting(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async with grounding(fake, clock) as (_, pipeline, lookup):
        await pipeline.send(EndFrame())
        await asyncio.sleep(0.1)
        assert not pipeline.seen(EndFrame) and not fake.sessions
        lookup.found.set()
        await pipeline.end_while_time_passes()
    assert "".join(frame.text for frame in pipeline.seen(TTSTextFrame)) == GREETING


@pytest.mark.parametrize("path", ["pipeline", "service"])
async def test_the_end_of_the_call_waits_no_longer_than_for_the_lookup(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("pipecat_personaplex.service.delegation.call_memory.GROUND_SECONDS", 0.2)
    async with grounding(fake, clock) as (service, pipeline, _):
        if path == "service":  # from a processor in front of it
            await service.queue_frame(EndFrame())
        await pipeline.end_while_time_passes()
    assert "".join(frame.text for frame in pipeline.seen(TTSTextFrame)) == GREETING
