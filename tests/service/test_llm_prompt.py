"""A new persona in the same session: the agent remembers the call."""

from __future__ import annotations

import pytest
from pipecat.frames.frames import (
    LLMFullResponseStartFrame,
    LLMUpdateSettingsFrame,
    SpeechOutputAudioRawFrame,
    TTSSpeakFrame,
    TTSTextFrame,
)

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import PromptTooLong, SessionFailed
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


async def change(pipeline: RunningPipeline, **fields: object) -> None:
    count = len(pipeline.seen(LLMUpdateSettingsFrame))
    await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(**fields)))  # type: ignore[arg-type]
    await pipeline.until_count(LLMUpdateSettingsFrame, count + 1)


async def test_a_new_persona_replaces_the_prompt_of_the_session_on_one_slot(clock: ManualClock):
    with FakeEngine(max_sessions=1) as fake:
        hats = Settings(system_instruction="You sell hats.")
        async with on_call(fake, clock, settings=hats) as (service, pipeline, events):
            [session] = fake.sessions
            session.pieces += [" We", " have"]
            fake.ready = False
            await pipeline.speak(tone(0.4))
            await change(pipeline, voice="NATM1", system_instruction="You sell tea.")
            session.pieces += [" many", " teas"]
            await pipeline.speak(tone(0.4))
            assert not events.named("on_prompt_changed")
            session.finish_prompt()
            await pipeline.until(lambda: events.named("on_prompt_changed"))
            await pipeline.speak(tone(0.4))
            await pipeline.until_count(SpeechOutputAudioRawFrame, 15)
            assert events.named("on_prompt_changed") == [(Persona("NATM1", "You sell tea."),)]
            assert service.settings.system_instruction == "You sell tea."
        assert not errors(pipeline) and len(fake.sessions) == 1
        # No frame is lost or repeated, and the agent finishes its sentence.
        assert len(session.heard) == 15
        assert len(events.named("on_session_started")) == 1
        assert events.named("on_session_ended") == [(Persona("NATM1", "You sell tea."), None)]
        assert "".join(f.text for f in pipeline.seen(TTSTextFrame)) == "We have many teas"
        assert len(pipeline.seen(LLMFullResponseStartFrame)) == 1


async def test_texts_that_wait_survive_a_new_persona(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (_, pipeline, events):
        await pipeline.send(TTSSpeakFrame("One moment please."))
        await change(pipeline, voice="NATM1")
        await pipeline.until(lambda: events.named("on_prompt_changed"))
        await pipeline.speak(tone(0.4))
        await pipeline.until(lambda: events.named("on_speech_done"))
        await pipeline.end_while_time_passes()
    assert "".join(f.text for f in pipeline.seen(TTSTextFrame)) == "One moment please."


async def test_a_prompt_that_fails_leaves_the_old_one_and_is_one_error(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock, settings=Settings(voice="NATF2")) as (service, pipeline, _):
        fake.ready = False
        await change(pipeline, voice="NATM1", temperature_text=0.0)
        # The sampling applies from the next frame on, while the prompt is still being computed.
        assert fake.sessions[0].sampling == SamplingParams(temperature_text=0.0)
        fake.sessions[0].finish_prompt(SessionFailed("out of memory"))
        await pipeline.until(lambda: errors(pipeline))
        assert "the persona was not changed: out of memory" in errors(pipeline)[0].error
        assert service.is_usable and service.settings.voice == "NATF2"
        assert service.settings.temperature_text == 0.0
        await pipeline.speak(tone(0.16))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 2)
    assert len(errors(pipeline)) == 1


async def test_a_prompt_that_is_refused_at_once_changes_nothing(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
):
    def too_long(persona: Persona, **options: object) -> None:
        raise PromptTooLong(4_000, 2_999)

    async with on_call(fake, clock) as (service, pipeline, _):
        monkeypatch.setattr(fake.sessions[0], "update_prompt", too_long)
        await pipeline.send(
            LLMUpdateSettingsFrame(delta=Settings(system_instruction="tea " * 4_000))
        )
        await pipeline.until(lambda: errors(pipeline))
        assert isinstance(errors(pipeline)[0].exception, PromptTooLong)
        assert service.is_usable and service.settings.system_instruction is None
    assert len(errors(pipeline)) == 1


async def test_an_unknown_voice_leaves_the_old_persona(fake: FakeEngine, clock: ManualClock):
    async with on_call(fake, clock) as (service, pipeline, events):
        await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(voice="NATX9")))
        await pipeline.until(lambda: errors(pipeline))
        assert "NATF2, NATM1" in errors(pipeline)[0].error
        assert service.is_usable and service.settings.voice is None
        assert not events.named("on_prompt_changed") and not fake.sessions[0].prompts


async def test_a_later_persona_replaces_one_that_is_not_in_effect(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock) as (service, pipeline, events):
        fake.ready = False
        for name in ("tea", "hats"):
            await change(pipeline, system_instruction=f"You sell {name}.")
        fake.sessions[0].finish_prompt()
        await pipeline.until(lambda: events.named("on_prompt_changed"))
        assert events.named("on_prompt_changed") == [(Persona("NATF2", "You sell hats."),)]
        assert service.settings.system_instruction == "You sell hats."
    assert not errors(pipeline)


async def test_the_settings_of_the_persona_in_effect_are_restored(
    fake: FakeEngine, clock: ManualClock
):
    """Tea comes into effect while cups are requested already; then cups fail."""
    service = PersonaPlexLLMService(fake, clock=clock)
    service.append_system_instruction("Be brief.")
    pipeline = RunningPipeline([service], clock=clock)
    events = Events(service)
    async with pipeline:
        await started(pipeline, events)
        session = fake.sessions[0]
        fake.ready = False
        await change(pipeline, system_instruction="You sell tea.")
        session.finish_prompt()
        await change(pipeline, system_instruction="You sell cups.")
        session.finish_prompt(SessionFailed("out of memory"))
        await pipeline.until(lambda: errors(pipeline))
        expected = "You sell tea.\n\nBe brief."
        assert events.named("on_prompt_changed") == [(Persona("NATF2", expected),)]
        assert service.settings.system_instruction == session.persona.text_prompt == expected
        service.append_system_instruction("Be kind.")
        assert service.settings.system_instruction == f"{expected}\n\nBe kind."


async def test_a_session_that_fails_while_its_prompt_is_computed_ends_the_call(
    fake: FakeEngine, clock: ManualClock
):
    async with on_call(fake, clock) as (service, pipeline, events):
        fake.ready = False
        await change(pipeline, voice="NATM1")
        failure = SessionFailed("NaN")
        fake.fail(failure)
        await pipeline.until(lambda: events.named("on_session_ended"))
        assert events.named("on_session_ended") == [(Persona("NATF2"), failure)]
        assert not service.is_usable


async def test_a_persona_replaces_a_first_session_that_is_pending(clock: ManualClock):
    with FakeEngine(max_sessions=1, ready=False) as fake:
        service = PersonaPlexLLMService(fake, clock=clock)
        pipeline = RunningPipeline([service], clock=clock)
        events = Events(service)
        async with pipeline:
            fake.ready = True
            await change(pipeline, voice="NATM1")
            await started(pipeline, events)
            assert [s.persona.voice for s in fake.open_sessions] == ["NATM1"]
            assert not fake.sessions[1].prompts
