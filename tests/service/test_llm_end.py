"""EndFrame waits for forced speech; CancelFrame does not."""

from __future__ import annotations

import asyncio
import time

import pytest
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)

from pipecat_personaplex.errors import EngineFailed
from pipecat_personaplex.service.end_gate import EndProbeFrame
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import (
    Events,
    ManualClock,
    RunningPipeline,
    errors,
    on_call,
    started,
    tone,
)

GOODBYE = "Goodbye and thank you for calling."


def words(pipeline: RunningPipeline) -> str:
    return "".join(frame.text for frame in pipeline.seen(TTSTextFrame))


async def send_end(pipeline: RunningPipeline, service: PersonaPlexLLMService) -> None:
    """Send an EndFrame and return while the service waits for its texts."""
    reached = asyncio.Event()

    @service.event_handler("on_before_process_frame")
    async def on_before_process_frame(service: object, frame: object) -> None:
        if isinstance(frame, EndProbeFrame):
            reached.set()

    await pipeline.send(EndFrame())
    await asyncio.wait_for(reached.wait(), 10)
    for _ in range(3):  # the service polls every 20 ms
        await asyncio.sleep(0.02)
    assert not pipeline.seen(EndFrame)


async def test_forced_speech_is_spoken_before_the_call_ends(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await send_end(pipeline, service)
        assert not fake.sessions[0].closed
        await pipeline.end_while_time_passes()
    assert words(pipeline) == GOODBYE
    assert not fake.open_sessions and not errors(pipeline)
    # The turn ended by its gap: the model ran for ten more frames after the words.
    kinds = [type(frame) for frame in pipeline.down]
    assert kinds.index(LLMFullResponseEndFrame) < kinds.index(EndFrame)
    assert kinds.count(LLMFullResponseEndFrame) == 1
    assert len(fake.sessions[0].heard) >= len(GOODBYE.split()) + 10


async def test_the_turn_of_forced_speech_may_finish(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, _):
        await pipeline.send(TTSSpeakFrame("Goodbye."))
        await pipeline.until_count(TTSSpeakFrame, 1)
        await pipeline.speak(tone(0.24))
        await pipeline.until_count(TTSTextFrame, 1)
        fake.sessions[0].pieces += [" Take", " care."]
        await pipeline.end_while_time_passes()
    assert words(pipeline) == "Goodbye. Take care."


async def test_a_greeting_is_spoken_if_the_session_becomes_ready_after_the_end_frame(
    clock: ManualClock,
):
    with FakeEngine(ready=False) as fake:
        service = PersonaPlexLLMService(fake, clock=clock, greeting="We are closed.")
        pipeline = RunningPipeline([service], clock=clock)
        async with pipeline:
            await send_end(pipeline, service)
            fake.sessions[0].make_ready()
            await pipeline.end_while_time_passes()
    assert words(pipeline) == "We are closed."


async def test_a_text_after_which_the_model_does_not_stop_is_waited_for_a_limited_time(
    fake: FakeEngine,
    clock: ManualClock,
    warnings_logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("pipecat_personaplex.service.end_gate._STALL_SECONDS", 0.2)
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(TTSSpeakFrame("Bye."))
        await pipeline.until_count(TTSSpeakFrame, 1)
        fake.sessions[0].pieces += [" and"] * 10_000
        await send_end(pipeline, service)
        begun = time.monotonic()
        await pipeline.end_while_time_passes()
        assert time.monotonic() - begun < 5
    assert words(pipeline).startswith("Bye. and")
    assert not [message for message in warnings_logged if "forced speech" in message]


async def test_an_interruption_does_not_stop_forced_speech(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await send_end(pipeline, service)
        await service.queue_frame(InterruptionFrame())
        await pipeline.end_while_time_passes()
    assert words(pipeline).replace(" ", "") == GOODBYE.replace(" ", "")
    assert pipeline.seen(InterruptionFrame)


async def test_a_cancelled_call_does_not_wait_for_speech(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, _):
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await pipeline.until_count(TTSSpeakFrame, 1)
        await pipeline.cancel()  # the clock stands still
    assert not fake.open_sessions


async def test_the_wait_for_speech_can_be_cancelled(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await send_end(pipeline, service)
        # Queued at the service: the worker sends nothing after an EndFrame until that has passed.
        await service.queue_frame(CancelFrame())
        await pipeline.ended()
    assert not fake.open_sessions


@pytest.mark.parametrize("stalled", ["the model", "the prompt"])
async def test_a_stalled_engine_delays_the_end_for_a_limited_time(
    clock: ManualClock,
    warnings_logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
    stalled: str,
):
    monkeypatch.setattr("pipecat_personaplex.service.end_gate._STALL_SECONDS", 0.2)
    with FakeEngine(ready=stalled == "the model") as fake:
        service = PersonaPlexLLMService(fake, clock=clock, greeting="Bye.")
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            if stalled == "the model":
                await started(pipeline, events)
            fake.step.clear()
            await send_end(pipeline, service)
            begun = time.monotonic()
            await pipeline.end_while_time_passes()
            assert 0.5 < time.monotonic() - begun < 5
            fake.step.set()
        assert not fake.open_sessions and words(pipeline) == ""
    assert [
        message for message in warnings_logged if "before all forced speech was spoken" in message
    ]


async def test_a_failed_engine_does_not_delay_the_end(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(TTSSpeakFrame(GOODBYE))
        await send_end(pipeline, service)
        fake.fail(EngineFailed("the device is gone"))
        await pipeline.ended()  # the clock stands still
    assert isinstance(errors(pipeline)[0].exception, EngineFailed)


async def test_a_call_without_a_session_ends_at_once(clock: ManualClock):
    with FakeEngine(max_sessions=0) as fake:
        service = PersonaPlexLLMService(fake, clock=clock, greeting=GOODBYE)
        async with RunningPipeline([service], clock=clock) as pipeline:
            await pipeline.until(lambda: errors(pipeline))
            await pipeline.end()  # the clock stands still


async def test_an_internal_error_does_not_delay_the_end(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipecat_personaplex.service.frames.float_to_pcm16", lambda pcm: 1 / 0)
    async with on_call(fake, clock, greeting=GOODBYE) as (_, pipeline, _):
        await pipeline.speak(tone(0.1))
        await pipeline.until(lambda: errors(pipeline))
        await pipeline.end()  # the clock stands still
    assert not fake.open_sessions


async def test_rejected_speech_does_not_delay_the_end(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, _):
        await pipeline.send(TTSSpeakFrame(" "))
        await pipeline.until(lambda: errors(pipeline))
        await pipeline.end()  # the clock stands still
