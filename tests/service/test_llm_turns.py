"""The agent's words and turns, forced speech, interruptions and contexts."""

from __future__ import annotations

import pytest
from pipecat.frames.frames import (
    AggregatedTextFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMServiceMetadataFrame,
    LLMTextFrame,
    SpeechOutputAudioRawFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies

from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine, says
from tests.helpers.pipelines import (
    Events,
    ManualClock,
    RunningPipeline,
    errors,
    on_call,
    started,
    tone,
)


async def test_the_agents_words_form_a_balanced_turn(fake: FakeEngine, clock: ManualClock):
    fake.on_open = says("", " Hello", " there", ".")
    async with on_call(fake, clock) as (_, pipeline, _):
        await pipeline.speak(tone(1.2))
        await pipeline.until_count(LLMFullResponseEndFrame, 1)
    words = [f for f in pipeline.down if not isinstance(f, InputAudioRawFrame)]
    kinds = [type(f) for f in words if not isinstance(f, SpeechOutputAudioRawFrame)]
    assert kinds[kinds.index(LLMFullResponseStartFrame) :][:10] == [
        LLMFullResponseStartFrame,
        TTSStartedFrame,
        *[LLMTextFrame, AggregatedTextFrame, TTSTextFrame] * 2,
        TTSStoppedFrame,
        LLMFullResponseEndFrame,
    ]
    assert "".join(f.text for f in pipeline.seen(TTSTextFrame)) == "Hello there."


@pytest.mark.parametrize("how", ["end", "cancel"])
async def test_an_open_turn_is_closed_at_the_end(fake: FakeEngine, clock: ManualClock, how: str):
    fake.on_open = says(" Well")
    service = PersonaPlexLLMService(fake, clock=clock)
    pipeline = RunningPipeline([service], clock=clock)
    closed: list[Frame] = []

    @service.event_handler("on_before_push_frame")
    async def on_before_push_frame(service: object, frame: Frame) -> None:
        closed.append(frame)

    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        await pipeline.speak(tone(0.2))
        await pipeline.until_count(TTSTextFrame, 1)
        await getattr(pipeline, how)()
    # A cancelled pipeline passes no frames on, but the service has pushed them.
    kinds = [type(frame) for frame in closed]
    assert kinds.count(LLMFullResponseStartFrame) == kinds.count(LLMFullResponseEndFrame) == 1
    assert kinds.count(TTSStartedFrame) == kinds.count(TTSStoppedFrame) == 1
    assert not fake.open_sessions


async def test_the_greeting_is_spoken_once_the_session_is_ready(clock: ManualClock):
    with FakeEngine(ready=False) as fake:
        service = PersonaPlexLLMService(fake, clock=clock, greeting="Good morning!")
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            assert not fake.sessions[0].said
            fake.sessions[0].make_ready()
            await started(pipeline, events)
            await pipeline.until(lambda: fake.sessions[0].said == ["Good morning!"])
            await pipeline.send(TTSSpeakFrame("And now this."))
            await pipeline.until_count(TTSSpeakFrame, 1)
            assert fake.sessions[0].said == ["Good morning!", "And now this."]
            assert fake.sessions[0].said_when == ["now", "pause"]
            await pipeline.end_while_time_passes()


async def test_a_rejected_text_is_an_error_and_the_call_continues(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(TTSSpeakFrame(" "))
        await pipeline.until(lambda: errors(pipeline))
        assert service.is_usable
        await pipeline.speak(tone(0.1))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 1)


async def test_interruptions_end_the_turn_and_lose_no_word(fake: FakeEngine, clock: ManualClock):
    fake.on_open = says(" One", " two", " three", " four")
    async with on_call(fake, clock) as (_, pipeline, _):
        await pipeline.speak(tone(0.16))
        await pipeline.until_count(TTSTextFrame, 1)
        await pipeline.send(InterruptionFrame())
        await pipeline.send(InterruptionFrame(), FrameDirection.UPSTREAM)
        await pipeline.until_count(InterruptionFrame, 1)
        await pipeline.speak(tone(1.2))
        await pipeline.until_count(LLMFullResponseEndFrame, 2)
        await pipeline.until_count(SpeechOutputAudioRawFrame, 17)
    assert "".join(f.text for f in pipeline.seen(TTSTextFrame)) == "One twothree four"
    lasting = (SpeechOutputAudioRawFrame, TTSTextFrame, LLMFullResponseEndFrame)
    assert not any(frame.interruptible for frame in pipeline.down if isinstance(frame, lasting))
    assert len(fake.sessions) == 1


async def test_an_interruption_while_frames_are_pushed_keeps_them_in_order(
    fake: FakeEngine, clock: ManualClock
):
    fake.on_open = says(" One", " two")
    service = PersonaPlexLLMService(fake, clock=clock)
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    pushed: list[type[Frame]] = []

    @service.event_handler("on_before_push_frame")
    async def on_before_push_frame(service: PersonaPlexLLMService, frame: Frame) -> None:
        pushed.append(type(frame))
        if isinstance(frame, LLMFullResponseStartFrame) and InterruptionFrame not in pushed:
            # The event task waits here, between the frames of one turn.
            await service.queue_frame(InterruptionFrame())
            await pipeline.until(lambda: InterruptionFrame in pushed)

    async with pipeline:
        await started(pipeline, events)
        await pipeline.speak(tone(1.2))
        await pipeline.until(lambda: pushed.count(LLMFullResponseEndFrame) == 2)
    turns = [LLMFullResponseStartFrame, TTSStartedFrame, TTSStoppedFrame, LLMFullResponseEndFrame]
    words = [LLMTextFrame, TTSTextFrame]
    assert [kind for kind in pushed if kind in turns + words] == [
        *turns[:2],
        *words,
        *turns[2:],
        *turns[:2],
        *words,
        *turns[2:],
    ]


async def test_the_metadata_disables_turn_detection_and_interruptions(
    fake: FakeEngine, clock: ManualClock
):
    service = PersonaPlexLLMService(fake, clock=clock)
    async with RunningPipeline([service], clock=clock) as pipeline:
        await pipeline.until_count(LLMServiceMetadataFrame, 1)
    strategies = pipeline.seen(LLMServiceMetadataFrame)[0].user_turn_strategies
    assert isinstance(strategies, ExternalUserTurnStrategies)
    assert strategies.enable_interruptions is False


async def test_the_first_context_may_set_the_role(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, events):
        context = LLMContext([{"role": "system", "content": "You sell tea."}])
        await pipeline.send(LLMContextFrame(context))
        await pipeline.until(lambda: events.named("on_prompt_changed"))
        later = LLMContext([{"role": "system", "content": "You sell coffee."}])
        await pipeline.send(LLMContextFrame(later))
        await pipeline.until_count(LLMContextFrame, 2)
    [session] = fake.sessions
    assert [persona.text_prompt for persona in session.prompts] == ["You sell tea."]


async def test_a_context_changes_nothing_when_the_role_is_set(fake: FakeEngine, clock: ManualClock):
    service = PersonaPlexLLMService(
        fake,
        clock=clock,
        settings=PersonaPlexLLMService.Settings(system_instruction="You sell hats."),
    )
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        context = LLMContext([{"role": "system", "content": "You sell tea."}])
        await pipeline.send(LLMContextFrame(context, speculation=True))
        await pipeline.until_count(LLMContextFrame, 1)
        # A speculative context does not hold back the model's words.
        fake.sessions[0].pieces.append(" Hats!")
        await pipeline.speak(tone(0.2))
        await pipeline.until_count(TTSTextFrame, 1)
    assert [s.persona.text_prompt for s in fake.sessions] == ["You sell hats."]
