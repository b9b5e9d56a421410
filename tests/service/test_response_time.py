"""Response times where a voice activity detector is in the pipeline."""

from __future__ import annotations

import numpy as np
from pipecat.frames.frames import (
    InputAudioRawFrame,
    MetricsFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.pipeline.worker import PipelineParams

from pipecat_personaplex.audio import float_to_pcm16
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.response_time import ResponseTime
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, started

QUIET = np.zeros(FRAME_SAMPLES, dtype=np.float32)
LOUD = 0.1 * np.sin(np.arange(FRAME_SAMPLES, dtype=np.float32) / 10)


def test_from_the_end_of_speech_to_the_first_audible_frame() -> None:
    clock = ManualClock()
    response = ResponseTime(clock)
    response.caller_started()
    clock.now += 1.0
    assert response.caller_stopped(waited=0.2) is None
    clock.now += 0.1
    assert response.agent(QUIET) is None
    clock.now += 0.1
    seconds = response.agent(LOUD)
    assert seconds is not None and abs(seconds - 0.4) < 1e-6
    clock.now += 0.08
    assert response.agent(LOUD) is None  # once


def test_an_agent_that_begins_before_the_end_is_reported() -> None:
    clock = ManualClock()
    response = ResponseTime(clock)
    clock.now += 10
    response.agent(LOUD)
    clock.now += 0.1
    seconds = response.caller_stopped(waited=0.4)
    assert seconds is not None and abs(seconds - 0.3) < 1e-6


def test_what_is_no_response() -> None:
    clock = ManualClock()
    response = ResponseTime(clock)
    response.caller_stopped(waited=0.2)
    response.caller_started()  # the caller goes on
    clock.now += 1
    assert response.agent(LOUD) is None
    response.caller_stopped(waited=0.0)  # the agent speaks already
    clock.now += 0.1
    assert response.agent(LOUD) is None
    clock.now += 6  # too late to be a response
    assert response.agent(LOUD) is None


def test_a_pause_of_an_agent_that_speaks_already_is_no_response() -> None:
    clock = ManualClock()
    response = ResponseTime(clock)
    clock.now += 10
    for _ in range(20):  # over the whole of the caller's "mhm"
        response.agent(LOUD)
        clock.now += 0.08
    assert response.caller_stopped(waited=0.2) is None
    clock.now += 0.5
    assert response.agent(LOUD) is None


async def test_the_service_reports_it_as_ttfb() -> None:
    with FakeEngine() as fake:  # it echoes the caller's audio
        agent = PersonaPlexLLMService(fake)
        params = PipelineParams(enable_metrics=True, send_initial_empty_metrics=False)
        pipeline, events = RunningPipeline([agent], params=params), Events(agent)
        async with pipeline:
            await started(pipeline, events)
            await pipeline.send(VADUserStartedSpeakingFrame(start_secs=0.2))
            await pipeline.send(VADUserStoppedSpeakingFrame(stop_secs=0.2))
            audio = InputAudioRawFrame(float_to_pcm16(LOUD).tobytes(), SAMPLE_RATE, 1)
            await pipeline.send(audio)
            await pipeline.until(lambda: ttfb(pipeline))
            [metric] = ttfb(pipeline)
    assert 0.2 <= metric.value < 5


def ttfb(pipeline: RunningPipeline) -> list[TTFBMetricsData]:
    data = [item for frame in pipeline.seen(MetricsFrame) for item in frame.data]
    return [item for item in data if isinstance(item, TTFBMetricsData)]
