"""Failures of the engine and of the service, and the metrics of a call."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pipecat.frames.frames import (
    LLMFullResponseEndFrame,
    LLMUpdateSettingsFrame,
    MetricsFrame,
    SpeechOutputAudioRawFrame,
    TTSTextFrame,
)
from pipecat.metrics.metrics import LLMUsageMetricsData
from pipecat.pipeline.worker import PipelineParams
from pipecat.utils.errors import ErrorCategory

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFailed,
    EngineFull,
    SessionFailed,
    VoiceNotFound,
)
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.metrics import PersonaPlexMetricsData
from pipecat_personaplex.service.playout import PlayoutMeter
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

Settings = PersonaPlexLLMService.Settings


async def test_a_full_engine_is_an_error_that_ends_the_call(clock: ManualClock):
    with FakeEngine(max_sessions=1) as fake:
        fake.open_session(Persona("NATF2"), on_frame=print)
        service = PersonaPlexLLMService(fake, clock=clock)
        async with RunningPipeline([service], clock=clock) as pipeline:
            await pipeline.until(lambda: errors(pipeline))
            (error,) = errors(pipeline)
            assert isinstance(error.exception, EngineFull)
            assert error.category is ErrorCategory.RATE_LIMIT
            assert error.processor is service and not service.is_usable
            await pipeline.speak(tone(0.2))  # has no effect
        assert len(fake.sessions) == 1


async def test_an_unknown_voice_is_an_error_that_names_the_known_ones(
    fake: FakeEngine, clock: ManualClock
):
    service = PersonaPlexLLMService(fake, clock=clock, settings=Settings(voice="NATX9"))
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    async with pipeline:
        await pipeline.until(lambda: errors(pipeline))
        (error,) = errors(pipeline)
        assert isinstance(error.exception, VoiceNotFound)
        assert error.category is ErrorCategory.INVALID_REQUEST
        assert "NATF2, NATM1" in error.error and not service.is_usable
        # Valid settings make it usable again.
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATM1")))
        await started(pipeline, events)
        assert service.is_usable
        await pipeline.speak(tone(0.1))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 1)


@pytest.mark.parametrize("failure", [EngineFailed("the device is gone"), SessionFailed("NaN")])
async def test_a_failure_during_the_call_ends_the_call(
    fake: FakeEngine, clock: ManualClock, failure: EngineFailed | SessionFailed
):
    fake.on_open = says(" I", " was")
    async with on_call(fake, clock) as (service, pipeline, events):
        await pipeline.speak(tone(0.16))
        await pipeline.until_count(TTSTextFrame, 1)
        fake.fail(failure)
        await pipeline.until(lambda: errors(pipeline))
        assert errors(pipeline)[0].exception is failure
        assert errors(pipeline)[0].category is ErrorCategory.SERVER
        assert not service.is_usable
        await pipeline.until(lambda: events.named("on_session_ended"))
        assert events.named("on_session_ended") == [(Persona("NATF2"), failure)]
        await pipeline.until_count(LLMFullResponseEndFrame, 1)
        await pipeline.speak(tone(0.2))  # has no effect
    assert len(errors(pipeline)) == 1
    assert len(events.named("on_session_ended")) == 1


async def test_an_internal_error_ends_the_call(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipecat_personaplex.service.frames.float_to_pcm16", lambda pcm: 1 / 0)
    fake.on_open = says(" Oh")
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.speak(tone(0.1))
        await pipeline.until(lambda: errors(pipeline))
        assert "ZeroDivisionError" in errors(pipeline)[0].error
        assert not service.is_usable
        await pipeline.until_count(LLMFullResponseEndFrame, 1)
    assert not fake.open_sessions


@pytest.mark.parametrize("engine", ["nano", None, 7, object()])
def test_an_object_that_is_not_an_engine_is_refused_at_once(engine: Any):
    with pytest.raises(ConfigError, match=f"not {type(engine).__name__}; Engine.load"):
        PersonaPlexLLMService(engine)


async def test_an_unexpected_error_of_open_session_ends_the_call(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    def broken(*args: object, **options: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(fake, "open_session", broken)
    service = PersonaPlexLLMService(fake, clock=clock)
    async with RunningPipeline([service], clock=clock) as pipeline:
        await pipeline.until(lambda: errors(pipeline))
        (error,) = errors(pipeline)
        assert error.error == "the call failed: AttributeError: no such thing"
        assert isinstance(error.exception, SessionFailed)
        assert error.category is ErrorCategory.SERVER and not service.is_usable


async def test_an_engine_without_voices_is_an_error(clock: ManualClock):
    with FakeEngine(voices=()) as fake:
        service = PersonaPlexLLMService(fake, clock=clock)
        async with RunningPipeline([service], clock=clock) as pipeline:
            await pipeline.until(lambda: errors(pipeline))
        assert isinstance(errors(pipeline)[0].exception, VoiceNotFound)


async def test_repeated_cleanup_ends_the_session_once(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (service, pipeline, events):
        pass
    await service.cleanup()
    await service.cleanup()
    assert events.named("on_session_ended") == [(Persona("NATF2"), None)]
    assert not fake.open_sessions
    assert not errors(pipeline)


async def test_a_service_that_never_ran_can_be_cleaned_up(fake: FakeEngine):
    service = PersonaPlexLLMService(fake)
    await service.cleanup()
    assert not fake.sessions


async def test_metrics_are_pushed_every_62_frames(fake: FakeEngine, clock: ManualClock):
    fake.on_open = says(" One", " two")
    fake.step_ms = 90.0
    meter = PlayoutMeter()
    service = PersonaPlexLLMService(fake, clock=clock, playout=meter)
    params = PipelineParams(enable_metrics=True, enable_usage_metrics=True)
    pipeline = RunningPipeline([service, meter], clock=clock, params=params)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        for count in range(1, 76):  # frame by frame, so that no input is dropped
            await pipeline.speak(tone(0.08), chunk=0.08)
            await pipeline.until_count(SpeechOutputAudioRawFrame, count)
        await pipeline.until(lambda: metrics_of(pipeline))
        await pipeline.until(lambda: len(events.named("on_late_frame")) >= 62)
    data, last = metrics_of(pipeline)
    assert last.frames == len(events.named("on_late_frame")) - 62, (
        "the rest, at the end of the call"
    )
    assert data.value == pytest.approx(0.09) and data.step_max == pytest.approx(0.09)
    assert (data.frames, data.late_frames) == (62, 62)
    assert data.playout_backlog is not None and data.input_discarded == 0
    usage = [d for f in pipeline.seen(MetricsFrame) for d in f.data]
    tokens = [u.value.completion_tokens for u in usage if isinstance(u, LLMUsageMetricsData)]
    assert tokens == [2, 0]
    assert events.named("on_late_frame")[0][0].total_ms == pytest.approx(90.5)


def metrics_of(pipeline: RunningPipeline) -> list[PersonaPlexMetricsData]:
    frames = pipeline.seen(MetricsFrame)
    return [d for frame in frames for d in frame.data if isinstance(d, PersonaPlexMetricsData)]


def test_the_service_needs_no_torch():
    code = "import sys, pipecat_personaplex.service; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
