"""The service's audio: sample rates, pacing, noise gate and playout backlog."""

from __future__ import annotations

import numpy as np
import pytest
from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    SpeechOutputAudioRawFrame,
)
from pipecat.pipeline.worker import PipelineParams
from pipecat.tests.utils import SleepFrame, run_test

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.playout import PlayoutMeter
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, on_call, started, tone


def dominant_hertz(pcm: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(pcm.astype(np.float64) * np.hanning(len(pcm))))
    return float(spectrum.argmax() * rate / len(pcm))


@pytest.mark.parametrize(
    ("rate_in", "rate_out", "channels"),
    [
        (24_000, 24_000, 1),
        (16_000, 24_000, 1),
        (8_000, 8_000, 1),
        (48_000, 24_000, 2),
        (16_000, 48_000, 2),
    ],
)
async def test_any_input_rate_and_channels_come_back_at_the_output_rate(
    fake: FakeEngine, clock: ManualClock, rate_in: int, rate_out: int, channels: int
):
    service = PersonaPlexLLMService(fake, clock=clock)
    params = PipelineParams(audio_in_sample_rate=rate_in, audio_out_sample_rate=rate_out)
    pipeline = RunningPipeline([service], params=params, clock=clock)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        sound = tone(1.0, rate_in)
        if channels == 2:
            sound = np.stack([2 * sound, np.zeros_like(sound)], axis=1)
        await pipeline.speak(sound, rate=rate_in)
        await pipeline.until_count(SpeechOutputAudioRawFrame, 12)
    frames = pipeline.seen(SpeechOutputAudioRawFrame)
    assert {(f.sample_rate, f.num_channels, f.num_frames) for f in frames} == {
        (rate_out, 1, rate_out * 80 // 1000)
    }
    heard = pipeline.audio()
    assert dominant_hertz(heard, rate_out) == pytest.approx(440, abs=2)
    assert np.abs(heard[rate_out // 10 :]).max() == pytest.approx(8_000, rel=0.02)
    # Every input frame is pushed on as well.
    assert len(pipeline.seen(InputAudioRawFrame)) == 50


async def test_it_runs_under_pipecats_run_test(fake: FakeEngine):
    service = PersonaPlexLLMService(fake)
    chunk = InputAudioRawFrame(tone(0.02, 16_000).tobytes(), 16_000, 1)
    # In real time: silence fills the frame, although only 20 ms of audio arrive.
    down, up = await run_test(service, frames_to_send=[chunk, SleepFrame(0.4)])
    assert any(isinstance(frame, SpeechOutputAudioRawFrame) for frame in down)
    assert not any(isinstance(frame, ErrorFrame) for frame in up)
    assert not fake.open_sessions


async def test_the_model_gets_silence_while_no_audio_arrives(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, _):
        for count in range(1, 26):
            clock.now += 0.08
            await pipeline.until_count(SpeechOutputAudioRawFrame, count - 1)
        await pipeline.until_count(SpeechOutputAudioRawFrame, 24)
    assert not pipeline.audio().any()


async def test_a_stall_and_its_burst_leave_no_delay(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, _):
        begun = clock.now
        await pipeline.speak(tone(0.8))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 10)
        for count in range(11, 35):  # nothing arrives for two seconds
            clock.now += 0.08
            await pipeline.until_count(SpeechOutputAudioRawFrame, count - 1)
        await pipeline.speak(tone(1.92), real_time=False)
        await pipeline.speak(tone(0.8))
        expected = round((clock.now - begun) / 0.08)
        await pipeline.until_count(SpeechOutputAudioRawFrame, expected - 1)
        sent = len(pipeline.audio()) / 24_000
        assert sent - (clock.now - begun) <= 0.12
        assert fake.sessions[0].stats().queued_frames <= 2
    assert pipeline.audio()[-2400:].any()


async def test_before_the_session_is_ready_only_the_newest_input_waits(clock: ManualClock):
    with FakeEngine(ready=False) as fake:
        service = PersonaPlexLLMService(fake, clock=clock)
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            await pipeline.speak(tone(2.0), chunk=0.04)
            assert not fake.sessions[0].heard
            fake.sessions[0].make_ready()
            await started(pipeline, events)
            await pipeline.until_count(SpeechOutputAudioRawFrame, 2)
            assert len(fake.sessions[0].heard) == 2


async def test_a_slow_model_gets_no_more_frames_than_may_be_in_flight(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock) as (_, pipeline, _):
        fake.step.clear()
        await pipeline.speak(tone(2.0))
        assert len(fake.sessions[0].heard) == 2  # one in the step, one behind it
        fake.step.set()
        await pipeline.until_count(SpeechOutputAudioRawFrame, 3)
        # One more frame waited in the pacer; the others were dropped, not delayed.
        assert len(fake.sessions[0].heard) == 3


async def test_the_noise_gate_silences_faint_noise(fake: FakeEngine, clock: ManualClock):
    for dbfs, peak in ((-50.0, 0), (None, 32)):
        service = PersonaPlexLLMService(fake, clock=clock, noise_gate_dbfs=dbfs)
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            await started(pipeline, events)
            await pipeline.speak(tone(0.4, peak=32))
            await pipeline.until_count(SpeechOutputAudioRawFrame, 5)
        assert np.abs(pipeline.audio()).max() == peak


async def test_silence_is_dropped_while_too_much_waits_to_be_played(
    fake: FakeEngine, clock: ManualClock
):
    meter = PlayoutMeter()
    service = PersonaPlexLLMService(fake, clock=clock, playout=meter)
    pipeline = RunningPipeline([service], clock=clock)  # plays nothing
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        await pipeline.speak(np.zeros(8 * FRAME_SAMPLES, np.int16))
        # Two frames make a backlog of 160 ms.
        await pipeline.until(lambda: len(fake.sessions[0].heard) == 8)
        await pipeline.speak(tone(0.08))
        await pipeline.until(lambda: pipeline.audio().any())
        silent = [f for f in pipeline.seen(SpeechOutputAudioRawFrame) if not any(f.audio)]
        assert len(silent) == 2
        assert meter.backlog == pytest.approx(0.24)
