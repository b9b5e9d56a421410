"""The service among Pipecat's own processors: aggregators, a parallel STT branch, an output."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    StartFrame,
    TranscriptionFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.pipeline.worker import ProcessorUnusablePolicy
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_start import TranscriptionUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies, UserTurnStrategies

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import EngineFailed
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, started, tone


class FakeSTT(FrameProcessor):
    """Pushes a transcription after every 25 audio frames."""

    def __init__(self, sentences: list[str]):
        super().__init__()
        self._sentences = sentences
        self._chunks = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._chunks += 1
            if self._chunks % 25 == 0 and self._sentences:
                text = self._sentences.pop(0)
                await self.push_frame(TranscriptionFrame(text, "caller", "now", finalized=True))


class FakeOutput(BaseOutputTransport):
    """An output transport that plays at once while ``may_play`` is set."""

    def __init__(self, **params: Any):
        super().__init__(TransportParams(audio_out_enabled=True, **params))
        self.may_play = asyncio.Event()
        self.may_play.set()
        self.played: list[OutputAudioRawFrame] = []

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        await self.may_play.wait()
        self.played.append(frame)
        return True


def aggregators(context: LLMContext, strategies: UserTurnStrategies) -> LLMContextAggregatorPair:
    return LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(user_turn_strategies=strategies)
    )


async def test_the_assistant_aggregator_records_the_agents_turns(fake: FakeEngine):
    fake.on_open = lambda session: session.pieces.extend(
        [" Hello", " you", "."] + [""] * 12 + [" Tea", "?"]
    )
    context = LLMContext()
    pair = aggregators(context, ExternalUserTurnStrategies(enable_interruptions=False))
    clock = ManualClock()
    service = PersonaPlexLLMService(fake, clock=clock)
    events = Events(service)
    turns: list[str] = []

    @pair.assistant().event_handler("on_assistant_turn_stopped")
    async def on_assistant_turn_stopped(aggregator: object, message: Any) -> None:
        turns.append(message.content)

    output = FakeOutput(audio_out_end_silence_secs=0)
    processors = [pair.user(), service, output, PlayoutMeter(), pair.assistant()]
    async with RunningPipeline(processors, clock=clock) as pipeline:
        await started(pipeline, events)
        await pipeline.speak(tone(2.4))
        await pipeline.until(lambda: len(turns) == 2)
    assert turns == ["Hello you.", "Tea?"]
    assert context.get_messages() == [
        {"role": "assistant", "content": "Hello you."},
        {"role": "assistant", "content": "Tea?"},
    ]


async def test_an_interruption_splits_the_assistant_turn_and_loses_no_word(fake: FakeEngine):
    fake.on_open = lambda session: session.pieces.extend([" One", " two", " three", " four"])
    context = LLMContext()
    pair = aggregators(context, ExternalUserTurnStrategies(enable_interruptions=False))
    clock = ManualClock()
    service = PersonaPlexLLMService(fake, clock=clock)
    events = Events(service)
    output = FakeOutput(audio_out_end_silence_secs=0)
    processors = [pair.user(), service, output, pair.assistant()]
    async with RunningPipeline(processors, clock=clock) as pipeline:
        await started(pipeline, events)
        await pipeline.speak(tone(0.16))
        await pipeline.until(lambda: len(output.played) == 4)
        await pipeline.send(InterruptionFrame())
        await pipeline.until_count(InterruptionFrame, 1)
        await pipeline.speak(tone(1.2))
        await pipeline.until(lambda: len(context.get_messages()) == 2)
        await pipeline.until(lambda: len(output.played) == 34)
    recorded = "".join(str(m["content"]) for m in context.get_messages() if isinstance(m, dict))
    assert recorded.replace(" ", "") == "Onetwothreefour"


async def test_a_parallel_stt_branch_records_the_caller_without_interruptions(fake: FakeEngine):
    fake.on_open = lambda session: session.pieces.extend([" Hm", " hm"] + [""] * 30 + [" Sure"])
    context = LLMContext()
    strategies = UserTurnStrategies(
        start=[TranscriptionUserTurnStartStrategy(enable_interruptions=False)],
        stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.05)],
    )
    pair = aggregators(context, strategies)
    clock = ManualClock()
    service = PersonaPlexLLMService(fake, clock=clock)
    events = Events(service)
    stt = FakeSTT(["Good morning.", "A tea, please."])
    output = FakeOutput(audio_out_end_silence_secs=0)
    processors = [
        ParallelPipeline([stt, pair.user()], [service]),
        output,
        PlayoutMeter(),
        pair.assistant(),
    ]
    async with RunningPipeline(processors, clock=clock) as pipeline:
        await started(pipeline, events)
        await pipeline.speak(tone(0.6))
        await pipeline.until_count(UserStoppedSpeakingFrame, 1)
        await pipeline.speak(tone(3.4))
        await pipeline.until_count(UserStoppedSpeakingFrame, 2)
        await pipeline.until(lambda: len(context.get_messages()) == 4)
    messages = [m for m in context.get_messages() if isinstance(m, dict)]
    users = [m["content"] for m in messages if m["role"] == "user"]
    agents = [m["content"] for m in messages if m["role"] == "assistant"]
    assert users == ["Good morning.", "A tea, please."]
    assert agents == ["Hm hm", "Sure"]
    assert pipeline.seen(UserStartedSpeakingFrame)
    assert not pipeline.seen(InterruptionFrame)
    assert not any(isinstance(frame, InterruptionFrame) for frame in pipeline.up)
    # The model received everything: each 80 ms has one output frame.
    assert len(output.played) == 2 * len(fake.sessions[0].heard)
    assert len(fake.sessions) == 1


async def test_the_output_knows_when_the_agent_has_stopped(fake: FakeEngine):
    clock = ManualClock()
    service = PersonaPlexLLMService(fake, clock=clock)
    events = Events(service)
    output = FakeOutput(audio_out_end_silence_secs=0)
    async with RunningPipeline([service, output], clock=clock) as pipeline:
        await started(pipeline, events)
        await pipeline.speak(tone(0.4))
        await pipeline.until_count(BotStartedSpeakingFrame, 1)
        # The codec's faint noise, in real time: the output transport has its own clock.
        while not pipeline.seen(BotStoppedSpeakingFrame):
            await pipeline.speak(tone(0.08, peak=25))
            await asyncio.sleep(0.02)
    assert len(pipeline.seen(BotStartedSpeakingFrame)) == 1


async def test_silence_is_dropped_to_reduce_a_playout_backlog(fake: FakeEngine):
    clock = ManualClock()
    meter = PlayoutMeter()
    service = PersonaPlexLLMService(fake, clock=clock, playout=meter)
    events = Events(service)
    output = FakeOutput(audio_out_end_silence_secs=0)
    async with RunningPipeline([service, output, meter], clock=clock) as pipeline:
        await started(pipeline, events)
        session = fake.sessions[0]
        await pipeline.speak(tone(0.8))
        await pipeline.until(lambda: len(output.played) == 20)
        # The output stalls for 640 ms while the agent talks: speech is never dropped.
        output.may_play.clear()
        await pipeline.speak(tone(0.64))
        await pipeline.until(lambda: meter.backlog > 0.6)
        assert len(session.heard) == 18
        # Then the agent becomes silent, after the gate has faded its last word. Silent frames would
        # only lengthen the queue, so the service drops them.
        await pipeline.speak(np.zeros(8 * FRAME_SAMPLES, np.int16))
        await pipeline.until(lambda: len(session.heard) == 26)
        output.may_play.set()
        await pipeline.until(lambda: meter.backlog < 0.01)
        await pipeline.speak(tone(0.08))
        await pipeline.until(lambda: len(output.played) == 2 * (18 + 3 + 1))
    assert sum(any(frame.audio) for frame in output.played) == 2 * (18 + 1)


@pytest.mark.parametrize("when", ["at the start", "during the call"])
async def test_a_pipeline_may_end_when_the_service_becomes_unusable(when: str):
    with FakeEngine(max_sessions=1) as fake:
        if when == "at the start":
            fake.open_session(Persona("NATF2"), on_frame=print)
        service = PersonaPlexLLMService(fake)
        events = Events(service)
        pipeline = RunningPipeline([service], policy=ProcessorUnusablePolicy.END)
        async with pipeline:
            if when == "during the call":
                await started(pipeline, events)
                fake.fail(EngineFailed("the device is gone"))
            await pipeline.ended()
    assert any(isinstance(frame, ErrorFrame) for frame in pipeline.up)
