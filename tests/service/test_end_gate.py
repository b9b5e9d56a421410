"""The end of a call inside compound processors, and a caller who does not wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    SpeechOutputAudioRawFrame,
    TTSSpeakFrame,
    TTSTextFrame,
    UserSpeakingFrame,
)
from pipecat.pipeline.llm_switcher import LLMSwitcher
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.pipeline.service_switcher import ServiceSwitcher
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_personaplex.service.end_gate import EndProbeFrame
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, started, tone

GOODBYE = "Goodbye and thank you for calling us today."


class Passing(FrameProcessor):
    """The other branch: passes every frame on."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


Compound = Callable[[PersonaPlexLLMService], FrameProcessor]
COMPOUNDS: dict[str, Compound] = {
    "ParallelPipeline": lambda agent: ParallelPipeline([Passing()], [agent]),
    "nested": lambda agent: ParallelPipeline([ParallelPipeline([Passing()], [agent])], [Passing()]),
    "ServiceSwitcher": lambda agent: ServiceSwitcher([agent, Passing()]),
    "LLMSwitcher": lambda agent: LLMSwitcher([agent, PersonaPlexLLMService(FakeEngine())]),
}


@pytest.mark.parametrize("name", [*COMPOUNDS])
async def test_a_goodbye_is_heard_as_it_is_spoken(
    fake: FakeEngine, clock: ManualClock, name: str
) -> None:
    agent = PersonaPlexLLMService(fake, clock=clock)
    events = Events(agent)
    pipeline = RunningPipeline([COMPOUNDS[name](agent)], clock=clock)
    async with pipeline:
        await started(pipeline, events)
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await pipeline.send(EndFrame())
        ahead = []
        while not pipeline.seen(EndFrame):
            clock.now += 0.02
            await asyncio.sleep(0.002)
            if agent._call.speech_seconds:
                ahead.append(len(pipeline.seen(SpeechOutputAudioRawFrame)))
        # The audio leaves the pipeline while the agent speaks, not at the end.
        assert ahead[-1] > 5
    assert "".join(frame.text for frame in pipeline.seen(TTSTextFrame)) == GOODBYE
    kinds = [type(frame) for frame in pipeline.down]
    assert EndFrame not in kinds[: kinds.index(TTSTextFrame)]


async def test_a_hang_up_during_the_goodbye_ends_the_call_at_once(
    fake: FakeEngine, clock: ManualClock
) -> None:
    agent = PersonaPlexLLMService(fake, clock=clock)
    events = Events(agent)
    pipeline = RunningPipeline([agent], clock=clock)
    probed = asyncio.Event()

    @agent.event_handler("on_before_process_frame")
    async def on_before_process_frame(service: object, frame: object) -> None:
        if isinstance(frame, EndProbeFrame):
            probed.set()

    async with pipeline:
        await started(pipeline, events)
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await pipeline.send(EndFrame())  # the clock stands still: the goodbye never ends
        await asyncio.wait_for(probed.wait(), 10)
        begun = time.monotonic()
        await pipeline.worker.cancel(reason="the caller hung up")
        await pipeline.ended()
        assert time.monotonic() - begun < 2.0
    assert not fake.open_sessions


async def test_a_service_that_gets_no_frames_delays_the_end_by_a_second_at_most(
    fake: FakeEngine, clock: ManualClock
) -> None:
    agent = PersonaPlexLLMService(fake, clock=clock)
    switcher = ServiceSwitcher([Passing(), agent])  # the first one is active
    async with RunningPipeline([switcher], clock=clock) as pipeline:
        begun = time.monotonic()
        await pipeline.end()
        assert time.monotonic() - begun < 4.0


async def test_a_caller_who_talks_without_pause_keeps_the_call_alive(
    fake: FakeEngine, clock: ManualClock
) -> None:
    agent = PersonaPlexLLMService(fake, clock=clock)
    events = Events(agent)
    async with RunningPipeline([agent], clock=clock) as pipeline:
        await started(pipeline, events)
        for _ in range(10):
            await pipeline.speak(tone(0.32))
            await pipeline.speak(tone(0.08, peak=100))
        # The observer of Pipecat's idle timeout counts these frames.
        assert 3 <= len(pipeline.seen(UserSpeakingFrame)) <= 5
        await pipeline.speak(tone(2.0, peak=100))
        assert len(pipeline.seen(UserSpeakingFrame)) <= 5, "silence does not count"
