"""Settings at the start of a call, and changes on an engine that opens a session for a persona."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import (
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMUpdateSettingsFrame,
    SpeechOutputAudioRawFrame,
)
from pipecat.services.settings import LLMSettings

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import ConfigError, EngineFull, SessionFailed
from pipecat_personaplex.interface import ALL_FEATURES
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

Settings = PersonaPlexLLMService.Settings
HAND_OVER = ALL_FEATURES - {"prompt"}


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    with FakeEngine(features=HAND_OVER) as engine:
        yield engine


async def test_sampling_changes_apply_to_the_running_session(fake: FakeEngine, clock: ManualClock):
    given = Settings(seed=7, top_k_text=5)
    async with on_call(fake, clock, settings=given) as (service, pipeline, _):
        assert fake.sessions[0].sampling == SamplingParams(seed=7, top_k_text=5)
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(temperature_audio=0.2)))
        await pipeline.until_count(LLMUpdateSettingsFrame, 1)
        expected = SamplingParams(seed=7, top_k_text=5, temperature_audio=0.2)
        assert fake.sessions[0].sampling == expected
        assert len(fake.sessions) == 1
        # A value out of range is refused; the settings are restored.
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(temperature_audio=-1.0)))
        await pipeline.until(lambda: errors(pipeline))
        assert fake.sessions[0].sampling == expected
        assert service.settings.temperature_audio == 0.2
        assert service.is_usable


@pytest.mark.parametrize("wrong", [123, ["You sell tea."]])
async def test_a_role_that_is_not_text_is_refused(
    fake: FakeEngine, clock: ManualClock, wrong: object
):
    hats = Settings(system_instruction="You sell hats.")
    async with on_call(fake, clock, settings=hats) as (service, pipeline, _):
        delta = Settings(system_instruction=wrong, voice="NATM1")  # type: ignore[arg-type]
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: errors(pipeline))
        assert "system_instruction must be text" in errors(pipeline)[0].error
        assert service.settings.system_instruction == "You sell hats."
        assert service.settings.voice is None and len(fake.sessions) == 1 and service.is_usable
        none = Settings(system_instruction=None)
        await pipeline.send(LLMUpdateSettingsFrame(delta=none))
        await pipeline.until(lambda: len(fake.sessions) == 2)
        assert fake.sessions[1].persona.text_prompt == ""


async def test_a_new_persona_takes_over_without_a_gap(fake: FakeEngine, clock: ManualClock):
    service = PersonaPlexLLMService(
        fake, clock=clock, settings=Settings(system_instruction="You sell hats.")
    )
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        old = fake.sessions[0]
        old.pieces += [" We", " have"]
        fake.ready = False
        await pipeline.speak(tone(0.4))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 5)
        delta = Settings(voice="NATM1", system_instruction="You sell tea.")
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until_count(LLMUpdateSettingsFrame, 1)
        new = fake.sessions[1]
        new.gain = 0.5
        # While its prompt is computed, the old session continues.
        await pipeline.speak(tone(0.4))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 10)
        assert not new.heard and not old.closed
        new.make_ready()
        await started(pipeline, events, 2)
        await pipeline.speak(tone(0.4))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 15)
        await pipeline.until(lambda: events.named("on_session_ended"))
        assert new.persona == Persona("NATM1", "You sell tea.")
        assert old.closed and not new.closed
    # One output frame for each 80 ms of input: the old voice, then the new one, no overlap.
    assert len(old.heard) == 10 and len(new.heard) == 5
    heard = pipeline.audio()
    peaks = [np.abs(frame).max() for frame in heard.reshape(-1, FRAME_SAMPLES)]
    assert [p > 6_000 for p in peaks] == [True] * 10 + [False] * 5
    assert min(peaks) > 3_000
    assert len(pipeline.seen(LLMFullResponseStartFrame)) == 1
    assert len(pipeline.seen(LLMFullResponseEndFrame)) == 1
    assert events.named("on_session_ended")[0] == (old.persona, None)


async def test_frames_in_flight_at_a_persona_change_are_still_played(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock) as (_, pipeline, events):
        fake.step.clear()
        await pipeline.speak(tone(0.08))
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATM1")))
        await started(pipeline, events, 2)
        await pipeline.speak(tone(0.08))
        old, new = fake.sessions
        assert len(old.heard) == len(new.heard) == 1 and not old.closed
        fake.step.set()
        await pipeline.until_count(SpeechOutputAudioRawFrame, 2)
        await pipeline.until(lambda: old.closed)
        # Frames of a closed session are ignored.
        old.closed = False
        old.push(np.ones(FRAME_SAMPLES, np.float32))
        await pipeline.speak(tone(0.08))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 3)
    assert len(pipeline.seen(SpeechOutputAudioRawFrame)) == 3
    assert np.abs(pipeline.audio()).max() <= 8_000


async def test_no_slot_for_a_new_persona_keeps_the_old_one(clock: ManualClock):
    with FakeEngine(max_sessions=1, features=HAND_OVER) as fake:
        service = PersonaPlexLLMService(
            fake, clock=clock, settings=Settings(system_instruction="You sell hats.")
        )
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            await started(pipeline, events)
            delta = Settings(system_instruction="You sell tea.", voice="NATM1")
            await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
            await pipeline.until(lambda: errors(pipeline))
            (error,) = errors(pipeline)
            assert isinstance(error.exception, EngineFull)
            assert service.is_usable
            assert service.settings.system_instruction == "You sell hats."
            assert service.settings.voice is None
            await pipeline.speak(tone(0.16))
            await pipeline.until_count(SpeechOutputAudioRawFrame, 2)
        assert len(fake.sessions) == 1


async def test_an_unknown_voice_for_a_new_persona_keeps_the_old_one(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATX9")))
        await pipeline.until(lambda: errors(pipeline))
        assert "NATF2, NATM1" in errors(pipeline)[0].error
        assert service.is_usable and service.settings.voice is None
        await pipeline.speak(tone(0.16))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 2)


async def test_a_new_persona_that_fails_while_pending_keeps_the_old_one(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock, settings=Settings(voice="NATF2")) as (service, pipeline, _):
        fake.ready = False
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATM1")))
        await pipeline.until(lambda: len(fake.sessions) == 2)
        fake.sessions[1].fail(SessionFailed("out of memory"))
        await pipeline.until(lambda: errors(pipeline))
        assert "out of memory" in errors(pipeline)[0].error
        assert service.is_usable and service.settings.voice == "NATF2"
        await pipeline.speak(tone(0.16))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 2)


async def test_the_sampling_of_a_rejected_persona_stays(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock, settings=Settings(voice="NATF2")) as (service, pipeline, _):
        fake.ready = False
        delta = Settings(voice="NATM1", temperature_text=0.0)
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: len(fake.sessions) == 2)
        running, new = fake.sessions
        # The sampling applies from the next frame on, while the prompt is still being computed.
        assert running.sampling == new.sampling == SamplingParams(temperature_text=0.0)
        new.fail(SessionFailed("out of memory"))
        await pipeline.until(lambda: errors(pipeline))
        assert service.settings.voice == "NATF2"
        assert service.settings.temperature_text == running.sampling.temperature_text == 0.0


async def test_the_sampling_of_a_persona_without_a_slot_is_refused_too(clock: ManualClock):
    with FakeEngine(max_sessions=1, features=HAND_OVER) as fake:
        service = PersonaPlexLLMService(fake, clock=clock)
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            await started(pipeline, events)
            delta = Settings(voice="NATM1", temperature_text=0.0)
            await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
            await pipeline.until(lambda: errors(pipeline))
            assert service.settings.temperature_text == 0.7
            assert fake.sessions[0].sampling == SamplingParams()


async def test_settings_match_a_session_that_cannot_change_its_sampling(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    def unsupported(sampling: SamplingParams) -> None:
        raise ConfigError("neither say nor update")

    async with on_call(fake, clock) as (service, pipeline, _):
        monkeypatch.setattr(fake.sessions[0], "update", unsupported)
        fake.ready = False
        delta = Settings(voice="NATM1", temperature_text=0.0)
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta))
        await pipeline.until(lambda: len(fake.sessions) == 2)
        fake.sessions[1].fail(SessionFailed("out of memory"))
        await pipeline.until(lambda: errors(pipeline))
        assert service.settings.voice is None and service.settings.temperature_text == 0.7


@pytest.mark.parametrize("refused", ["at once", "while pending", "after another change"])
async def test_a_refused_persona_keeps_the_appended_instruction(clock: ManualClock, refused: str):
    with FakeEngine(max_sessions=1 if refused == "at once" else 3, features=HAND_OVER) as fake:
        first = Settings(system_instruction="You sell hats.")
        service = PersonaPlexLLMService(fake, clock=clock, settings=first)
        service.append_system_instruction("Be brief.")
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            await started(pipeline, events)
            expected = "You sell hats.\n\nBe brief."
            if refused == "after another change":
                second = Settings(system_instruction="You sell cups.")
                await pipeline.send(LLMUpdateSettingsFrame(delta=second))
                await started(pipeline, events, 2)
                expected = "You sell cups.\n\nBe brief."
            fake.ready = False
            third = Settings(system_instruction="You sell tea.")
            await pipeline.send(LLMUpdateSettingsFrame(delta=third))
            if refused != "at once":
                await pipeline.until(lambda: "tea" in fake.sessions[-1].persona.text_prompt)
                fake.sessions[-1].fail(SessionFailed("out of memory"))
            await pipeline.until(lambda: errors(pipeline))
            assert service.settings.system_instruction == expected
            assert fake.open_sessions[0].persona.text_prompt == expected
            # The appended instruction does not double when another one is appended.
            service.append_system_instruction("Be kind.")
            assert service.settings.system_instruction == f"{expected}\n\nBe kind."


async def test_a_pending_session_gives_up_its_slot_to_a_new_persona(clock: ManualClock):
    with FakeEngine(max_sessions=1, ready=False, features=HAND_OVER) as fake:
        service = PersonaPlexLLMService(fake, clock=clock)
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            fake.ready = True
            await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATM1")))
            await started(pipeline, events)
            assert [s.persona.voice for s in fake.open_sessions] == ["NATM1"]
        assert not errors(pipeline)
        assert events.named("on_session_started") == [(Persona("NATM1"),)]


async def test_settings_for_another_service_are_pushed_on_once(
    fake: FakeEngine, clock: ManualClock
):
    service = PersonaPlexLLMService(fake, clock=clock)
    other = PersonaPlexLLMService(fake, clock=clock)
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        delta = Settings(voice="NATM1")
        await pipeline.send(LLMUpdateSettingsFrame(delta=delta, service=other))
        await pipeline.end()
    assert len(pipeline.seen(LLMUpdateSettingsFrame)) == 1
    assert len(fake.sessions) == 1


async def test_settings_without_effect_change_nothing_and_warn(
    fake: FakeEngine, clock: ManualClock, warnings_logged: list[str]
):
    async with on_call(fake, clock) as (service, pipeline, _):
        await pipeline.send(LLMUpdateSettingsFrame(delta=LLMSettings(top_p=0.5)))
        await pipeline.until_count(LLMUpdateSettingsFrame, 1)
        assert len(fake.sessions) == 1 and not errors(pipeline)
    assert [message.strip() for message in warnings_logged] == [
        f"{service}: settings without effect: top_p"
    ]


def test_the_constructor_names_settings_without_effect(
    fake: FakeEngine, warnings_logged: list[str]
):
    given = Settings(temperature=0.3, top_k=5, max_tokens=3, model="foo", extra={"speed": 2})
    service = PersonaPlexLLMService(fake, settings=given)
    names = "max_tokens, model, speed, temperature, top_k"
    assert [message.strip() for message in warnings_logged] == [
        f"{service}: settings without effect: {names}"
    ]


@pytest.mark.parametrize(
    "given", [None, Settings(), Settings.defaults(), Settings(seed=3, voice="NATM1", top_p=None)]
)
def test_supported_settings_do_not_warn(fake: FakeEngine, warnings_logged: list[str], given: Any):
    PersonaPlexLLMService(fake, settings=given)
    assert not warnings_logged


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature_audio": 99}, "temperature_audio must be from 0"),
        ({"temperature_text": "hot"}, "temperature_text must be a number"),
        ({"temperature_text": float("nan")}, "temperature_text must be from 0"),
        ({"top_k_text": 0}, "top_k_text must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": ""}, "seed must be an integer"),
        ({"voice": 7}, "voice must be text"),
        ({"system_instruction": ["You sell tea."]}, "text_prompt must be text"),
    ],
)
def test_the_constructor_refuses_invalid_settings(
    fake: FakeEngine, wrong: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        PersonaPlexLLMService(fake, settings=Settings(**wrong))
