from __future__ import annotations

from pipecat_personaplex.config import Persona
from pipecat_personaplex.service.requested_settings import RequestedSettings
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings

ANNA, BERT, CLEO = (Persona("NATF2", f"You are {name}.") for name in ("Anna", "Bert", "Cleo"))


def requested(*personas: Persona) -> RequestedSettings:
    settings = RequestedSettings()
    for persona in personas:
        settings.add(persona, PersonaPlexLLMSettings(system_instruction=f"as {persona.voice}"))
    return settings


def test_settings_come_back_as_they_were_requested() -> None:
    settings = requested(ANNA, BERT)
    assert settings.of(ANNA).system_instruction == "as NATF2"
    settings.in_effect(BERT)
    assert settings.of(BERT).system_instruction == "as NATF2"


def test_requests_before_the_one_in_effect_are_forgotten() -> None:
    settings = requested(ANNA, BERT, CLEO)
    settings.in_effect(BERT)
    # Made from the persona itself.
    assert settings.of(ANNA).system_instruction == "You are Anna."
    assert settings.of(CLEO).system_instruction == "as NATF2"


def test_a_persona_that_is_requested_again_is_the_latest() -> None:
    settings = requested(ANNA, BERT, ANNA)
    settings.in_effect(BERT)
    assert settings.of(ANNA).system_instruction == "as NATF2"


def test_an_unknown_persona_in_effect_changes_nothing() -> None:
    settings = requested(ANNA)
    settings.in_effect(BERT)
    assert settings.of(ANNA).system_instruction == "as NATF2"
    assert settings.of(Persona("NATM1")).system_instruction is None
