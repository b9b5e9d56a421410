"""The service with a real engine and the small golden checkpoint, in real time."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from pipecat.frames.frames import (
    ErrorFrame,
    InputAudioRawFrame,
    LLMUpdateSettingsFrame,
    SpeechOutputAudioRawFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)
from pipecat.pipeline.worker import PipelineParams

from pipecat_personaplex import Engine, EngineConfig, Persona
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.pipelines import Events, RunningPipeline, started, tone

Settings = PersonaPlexLLMService.Settings


@pytest.mark.realtime
async def test_a_call_with_a_greeting_and_a_new_persona(engine: Engine):
    first, second = engine.voices[:2]
    service = PersonaPlexLLMService(
        engine,
        settings=Settings(voice=first, system_instruction="You enjoy tea.", seed=5),
        greeting="Hello there!",
    )
    params = PipelineParams(audio_in_sample_rate=16_000)
    pipeline = RunningPipeline([service], params=params)
    events = Events(service)
    arrivals: list[float] = []

    @service.event_handler("on_after_push_frame")
    async def on_after_push_frame(service: object, frame: object) -> None:
        if isinstance(frame, SpeechOutputAudioRawFrame):
            arrivals.append(time.monotonic())

    async with pipeline:
        await started(pipeline, events)
        begun = time.monotonic()
        sound = tone(3.2, 16_000).reshape(-1, 320)
        for index, chunk in enumerate(sound):
            # A microphone does not wait for the pipeline.
            await asyncio.sleep(max(0.0, begun + 0.02 * (index + 1) - time.monotonic()))
            await pipeline.send(InputAudioRawFrame(chunk.tobytes(), 16_000, 1))
            if index == 80:
                delta = Settings(voice=second, system_instruction="You sell tea.")
                await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: events.named("on_prompt_changed"))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 39)
    assert not any(isinstance(frame, ErrorFrame) for frame in pipeline.up)
    assert events.named("on_session_started") == [(Persona(first, "You enjoy tea."),)]
    assert events.named("on_prompt_changed") == [(Persona(second, "You sell tea."),)]
    assert "Hello there!" in "".join(frame.text for frame in pipeline.seen(TTSTextFrame))
    assert np.abs(pipeline.audio()).max() > 1_000
    assert np.diff(arrivals).max() <= 0.2
    assert engine.stats().sessions == 0


async def test_forced_speech_is_spoken_completely_before_the_end():
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=1)) as nano:
        service = PersonaPlexLLMService(nano)
        pipeline = RunningPipeline([service])
        events = Events(service)
        async with pipeline:
            await started(pipeline, events)
            await pipeline.send(TTSSpeakFrame("Congratulations, Zoë… and goodbye!"))
        # No audio arrives: the clock task keeps the model running after the EndFrame.
        spoken = "".join(frame.text for frame in pipeline.seen(TTSTextFrame))
        assert spoken.endswith("Congratulations, Zoë... and goodbye!")
        [(speech,)] = events.named("on_speech_done")
        assert (speech.words, speech.state) == (4, "said")
        # The words take about 40 frames at the model's pace, and the gap ten more.
        assert 40 <= len(pipeline.seen(SpeechOutputAudioRawFrame)) <= 120
        assert nano.stats().sessions == 0
