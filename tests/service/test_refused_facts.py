"""What an engine refuses costs neither the call nor the facts that fit."""

from __future__ import annotations

import pytest
from pipecat.frames.frames import LLMUpdateSettingsFrame

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import ConfigError, PersonaPlexError, PromptTooLong, SessionFailed
from pipecat_personaplex.service.knowledge import estimated_tokens
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.engines import FakeEngine, FakeSession
from tests.helpers.pipelines import ManualClock, RunningPipeline, errors, on_call

pytestmark = pytest.mark.realtime

Settings = PersonaPlexLLMService.Settings
ROLE = "You work for Yellow Bird."
LIMIT = 60
FACTS = [f"Fact {number} is known." for number in range(4)]
LONG_ROLE = "You sell tea. " * 12  # fits, but not with all facts
TOO_LONG_ROLE = "You sell tea. " * 40


class Refusing:
    """Refuses prompts, in the call or when the server answers.

    Attributes:
        error_of: Returns why a persona is refused; None accepts it.
        later: Whether the refusal is reported after the method has returned, as by a server.
    """

    def __init__(self, fake: FakeEngine, later: bool, monkeypatch: pytest.MonkeyPatch):
        self.later = later
        self.error_of = too_long
        open_session, update_prompt = fake.open_session, FakeSession.update_prompt

        def open_or_refuse(persona: Persona, *args, **options):
            error = self.error_of(persona)
            if error is not None and not later:
                raise error
            fake.ready = error is None
            session = open_session(persona, *args, **options)
            if error is not None:
                session.fail(error)
            return session

        def update_or_refuse(session, persona, *, history=None, on_done=None):
            error = self.error_of(persona)
            if error is None:
                update_prompt(session, persona, history=history, on_done=on_done)
            elif later:
                fake.do(lambda: on_done(error))
            else:
                raise error

        monkeypatch.setattr(fake, "open_session", open_or_refuse)
        monkeypatch.setattr(FakeSession, "update_prompt", update_or_refuse)


def too_long(persona: Persona) -> PersonaPlexError | None:
    tokens = estimated_tokens(persona.text_prompt)
    return PromptTooLong(tokens, LIMIT) if tokens > LIMIT else None


def no_text_prompt(persona: Persona) -> PersonaPlexError | None:
    return ConfigError("this checkpoint is Moshi") if persona.text_prompt else None


@pytest.fixture(params=[False, True], ids=["at once", "as a server reports it"])
def refusing(
    fake: FakeEngine, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Refusing:
    return Refusing(fake, request.param, monkeypatch)


def prompt(fake: FakeEngine) -> str:
    """The prompt that is in effect."""
    return fake.sessions[-1].persona.text_prompt


def set_facts(service: PersonaPlexLLMService, facts: list[str] = FACTS) -> None:
    for fact in facts:
        service.set_fact(fact, fact)


def has_all_facts(fake: FakeEngine) -> bool:
    return all(fact in prompt(fake) for fact in FACTS)


async def change(pipeline: RunningPipeline, **fields: str) -> None:
    await pipeline.send(LLMUpdateSettingsFrame(delta=Settings(**fields)))


@pytest.mark.usefixtures("refusing")
async def test_a_role_that_is_too_long_leaves_the_facts(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async with on_call(fake, clock, settings=Settings(system_instruction=ROLE)) as (
        service,
        pipeline,
        _,
    ):
        set_facts(service, FACTS[:3])
        await pipeline.until(lambda: FACTS[2] in prompt(fake))
        await change(pipeline, system_instruction=TOO_LONG_ROLE)
        await pipeline.until(lambda: errors(pipeline))
        assert service.settings.system_instruction == ROLE
        set_facts(service)
        await pipeline.until(lambda: FACTS[3] in prompt(fake))
        assert has_all_facts(fake) and prompt(fake).startswith(ROLE)
    assert len(errors(pipeline)) == 1


@pytest.mark.usefixtures("refusing")
async def test_a_long_role_has_the_newest_facts_and_a_shorter_one_after_it_all(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async with on_call(fake, clock) as (service, pipeline, _):
        set_facts(service)
        await pipeline.until(lambda: has_all_facts(fake))
        await change(pipeline, system_instruction=LONG_ROLE)
        await pipeline.until(lambda: prompt(fake).startswith("You sell tea."))
        assert FACTS[3] in prompt(fake) and FACTS[0] not in prompt(fake)
        await change(pipeline, system_instruction=ROLE)
        await pipeline.until(lambda: prompt(fake).startswith(ROLE))
        assert has_all_facts(fake)
    assert not errors(pipeline)


async def test_a_role_that_is_too_long_for_the_start_leaves_the_facts(
    fake: FakeEngine, refusing: Refusing
) -> None:
    service = PersonaPlexLLMService(fake, settings=Settings(system_instruction=ROLE))
    set_facts(service)
    await service._update_settings(Settings(system_instruction=TOO_LONG_ROLE))
    async with RunningPipeline([service]) as pipeline:
        await pipeline.until(lambda: errors(pipeline) and fake.open_sessions)
        assert has_all_facts(fake) and prompt(fake).startswith(ROLE)
        await change(pipeline, voice="NATM1")
        await pipeline.until(lambda: fake.sessions[-1].persona.voice == "NATM1")
        assert has_all_facts(fake)


async def test_a_checkpoint_without_text_prompts_loses_the_facts_alone(
    fake: FakeEngine, refusing: Refusing
) -> None:
    refusing.error_of = no_text_prompt
    service = PersonaPlexLLMService(fake)
    set_facts(service)
    async with RunningPipeline([service]) as pipeline:
        await pipeline.until(lambda: service._call.active)
        assert fake.sessions[-1].persona == Persona("NATF2")
        set_facts(service, ["Another fact."])
        await change(pipeline, voice="NATM1")
        await pipeline.until(lambda: fake.sessions[-1].persona == Persona("NATM1"))
    assert not errors(pipeline)


async def test_a_fact_of_a_change_that_fails_is_tried_again(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipecat_personaplex.service.settings_service._FACTS_RETRY_SECONDS", 0.1)
    async with on_call(fake, clock, settings=Settings(system_instruction=ROLE)) as (
        service,
        pipeline,
        _,
    ):
        [session] = fake.sessions
        set_facts(service)
        fake.ready = False
        await change(pipeline, system_instruction="You sell tea.")
        await pipeline.until(lambda: session.prompts)
        await pipeline.until(lambda: service._facts._timer is None)
        fake.ready = True
        session.finish_prompt(SessionFailed("too slow"))
        await pipeline.until(lambda: has_all_facts(fake))
        assert prompt(fake).startswith(ROLE)
    assert [error.error for error in errors(pipeline)] == ["the persona was not changed: too slow"]
