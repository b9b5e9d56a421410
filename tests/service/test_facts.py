"""Facts in the prompt of a running call: of the application, the context, the backend."""

from __future__ import annotations

import asyncio

import pytest
from pipecat.frames.frames import (
    LLMContextFrame,
    LLMMessagesAppendFrame,
    TTSTextFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams

from pipecat_personaplex.errors import (
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
)
from pipecat_personaplex.service.delegation import call_memory
from pipecat_personaplex.service.knowledge import estimated_tokens
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.delegation import delegated_call
from tests.helpers.engines import FakeEngine
from tests.helpers.llm import Rule, StubLLM
from tests.helpers.pipelines import ManualClock, RunningPipeline, errors, on_call

pytestmark = pytest.mark.realtime

ROLE = "You work for Yellow Bird."
SERVICE = {"settings": PersonaPlexLLMService.Settings(system_instruction=ROLE)}


def prompts(fake: FakeEngine) -> list[str]:
    """The first prompt and those that replaced it."""
    [session] = fake.sessions
    return [persona.text_prompt for persona in session.prompts]


async def test_notes_become_facts_in_one_new_prompt_without_a_word(fake: FakeEngine) -> None:
    rule = Rule("kitchen", "The kitchen closes at eight.")
    async with (
        StubLLM([rule]) as llm,
        delegated_call(fake, llm.worker(), service=SERVICE) as call,
    ):
        await call.says("When does the kitchen close?")
        await call.until(lambda: prompts(fake))
        assert prompts(fake) == [f"{ROLE} Information: The kitchen closes at eight."]
        assert not call.ear.seen(TTSTextFrame) and not fake.sessions[0].said


async def test_new_developer_messages_of_the_context_become_facts(
    fake: FakeEngine, clock: ManualClock
) -> None:
    context = LLMContext([{"role": "system", "content": "ignored: the settings have a role"}])
    async with on_call(fake, clock, **SERVICE) as (_, pipeline, _):
        await pipeline.send(LLMContextFrame(context))
        context.add_message({"role": "developer", "content": "The caller sounds upset."})
        context.add_message({"role": "user", "content": "Hello."})
        context.add_message({"role": "system", "content": [{"type": "text", "text": "It rains."}]})
        await pipeline.send(LLMContextFrame(context))
        await pipeline.until(lambda: len(prompts(fake)) == 1)
        assert prompts(fake) == [f"{ROLE} Information: It rains. The caller sounds upset."]
        # A message that is replaced, as memory processors do, replaces its fact.
        context.set_messages([context.messages[0], {"role": "developer", "content": "Sun."}])
        await pipeline.send(LLMContextFrame(context))
        await pipeline.until(lambda: len(prompts(fake)) == 2)
        assert prompts(fake)[1] == f"{ROLE} Information: Sun."
        assert not errors(pipeline) and not fake.sessions[0].said


async def test_appended_messages_that_ask_for_a_run_reach_the_model_at_once(
    fake: FakeEngine,
) -> None:
    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(), service=SERVICE) as call,
    ):
        message = {"role": "developer", "content": "The caller is Ann."}
        await call.worker.queue_frame(LLMMessagesAppendFrame([message], run_llm=True))
        await call.until(lambda: prompts(fake))
        assert prompts(fake) == [f"{ROLE} Information: The caller is Ann."]
        assert not llm.requests  # no words of the caller, so nothing to delegate


async def test_facts_of_the_application_are_set_replaced_and_dropped(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async with on_call(fake, clock, **SERVICE) as (service, pipeline, events):
        service.set_fact("stock", "There is tea.")
        service.set_fact("stock", "There is no tea.")
        await pipeline.until(lambda: len(prompts(fake)) == 1)
        service.drop_fact("stock")
        await pipeline.until(lambda: len(prompts(fake)) == 2)
        assert prompts(fake) == [f"{ROLE} Information: There is no tea.", ROLE]
        await pipeline.until(lambda: len(events.named("on_prompt_changed")) == 2)
        await service._update_settings(service.Settings(system_instruction="You are Bob."))
        assert prompts(fake)[-1] == "You are Bob."


async def test_a_fact_that_changes_back_before_its_prompt_is_in_effect(
    fake: FakeEngine, clock: ManualClock
) -> None:
    requested: list[str] = []
    async with on_call(fake, clock, **SERVICE) as (service, pipeline, _):
        [session] = fake.sessions

        def update_prompt(persona, *, history=None, on_done=None):  # it takes long
            requested.append(persona.text_prompt)

        session.update_prompt = update_prompt
        service.set_fact("mood", "The caller is angry.")
        await pipeline.until(lambda: requested)
        service.drop_fact("mood")
        await pipeline.until(lambda: len(requested) == 2)
    assert requested == [f"{ROLE} Information: The caller is angry.", ROLE]


@pytest.mark.parametrize("at_once", [True, False])
async def test_facts_that_do_not_fit_give_way_to_newer_ones(
    fake: FakeEngine, clock: ManualClock, at_once: bool
) -> None:
    limit = 30

    async with on_call(fake, clock, **SERVICE) as (service, pipeline, _):
        [session] = fake.sessions
        accept = session.update_prompt

        def update_prompt(persona, *, history=None, on_done=None):
            frames = estimated_tokens(persona.text_prompt)
            if frames <= limit:
                accept(persona, history=history, on_done=on_done)
            elif at_once:
                raise PromptTooLong(frames, limit)
            else:  # as a server reports it
                fake.do(lambda: on_done(PromptTooLong(frames, limit)))

        session.update_prompt = update_prompt
        for number in range(8):
            service.set_fact(str(number), f"Fact {number} is known.")
        await pipeline.until(lambda: prompts(fake))
        [prompt] = prompts(fake)
        assert estimated_tokens(prompt) <= limit and "Fact 7" in prompt and "Fact 0" not in prompt
        assert not errors(pipeline)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "as a server reports it"])
async def test_facts_that_do_not_fit_do_not_end_the_call_at_its_beginning(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    limit, accept = 30, fake.open_session

    def open_session(persona, *args, **options):
        frames = estimated_tokens(persona.text_prompt)
        fake.ready = frames <= limit
        if not fake.ready and not later:
            raise PromptTooLong(frames, limit)
        session = accept(persona, *args, **options)
        if not fake.ready:
            session.fail(PromptTooLong(frames, limit))
        return session

    monkeypatch.setattr(fake, "open_session", open_session)
    service = PersonaPlexLLMService(fake, **SERVICE)
    for number in range(8):
        service.set_fact(str(number), f"Fact {number} is known.")
    async with RunningPipeline([service]) as pipeline:
        await pipeline.until(lambda: fake.sessions and fake.ready)
        opened = fake.sessions[-1].persona.text_prompt
        assert opened.startswith(ROLE) and "Fact 7" in opened and "Fact 0" not in opened
        await service._update_settings(service.Settings(system_instruction=f"{ROLE} Be brief."))
        assert not errors(pipeline)


async def test_a_voice_that_is_added_later_does_not_become_a_calls_default(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async with on_call(fake, clock, **SERVICE) as (service, pipeline, _):
        [session] = fake.sessions
        before = session.persona.voice
        fake.voices.insert(0, "Ann")
        service.set_fact("stock", "There is tea.")
        await pipeline.until(lambda: session.prompts)
        assert session.prompts[0].voice == before != "Ann"


async def test_instructions_that_pipecat_adds_for_tools_are_no_part_of_the_role(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async def slow(params: FunctionCallParams) -> None:
        await params.result_callback("done")

    service = PersonaPlexLLMService(fake, **SERVICE)
    service.register_function("slow", slow, cancel_on_interruption=False)
    context = LLMContext()
    async with RunningPipeline([service]) as pipeline:
        await pipeline.until(lambda: fake.sessions)
        assert fake.sessions[0].persona.text_prompt == ROLE
        await pipeline.send(LLMContextFrame(context))
        service.set_fact("stock", "There is tea.")
        await pipeline.until(lambda: prompts(fake))
    assert prompts(fake) == [f"{ROLE} Information: There is tea."]


async def test_a_role_of_the_context_counts_beside_tools(
    fake: FakeEngine, clock: ManualClock
) -> None:
    async def slow(params: FunctionCallParams) -> None:
        await params.result_callback("done")

    async with on_call(fake, clock) as (service, pipeline, _):
        service.register_function("slow", slow, cancel_on_interruption=False)
        context = LLMContext([{"role": "system", "content": "You are Anna."}])
        await pipeline.send(LLMContextFrame(context))
        await pipeline.until(lambda: prompts(fake))
        assert prompts(fake) == ["You are Anna."]


async def test_a_replay_that_fails_is_tried_again(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipecat_personaplex.service.settings_service._FACTS_RETRY_SECONDS", 0.1)
    async with on_call(fake, clock, **SERVICE) as (service, pipeline, _):
        [session] = fake.sessions
        accept, failures = session.update_prompt, [SessionFailed("too slow")]

        def update_prompt(persona, *, history=None, on_done=None):
            if failures:
                error: PersonaPlexError = failures.pop()
                fake.do(lambda: on_done(error))
            else:
                accept(persona, history=history, on_done=on_done)

        session.update_prompt = update_prompt
        service.set_fact("a", "There is tea.")
        await pipeline.until(lambda: prompts(fake))
        assert [error.error for error in errors(pipeline)] == [
            "the facts were not changed: too slow"
        ]
        assert prompts(fake) == [f"{ROLE} Information: There is tea."]


async def test_a_new_fact_does_not_wait_for_the_next_attempt_and_renews_the_attempts(
    fake: FakeEngine, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "pipecat_personaplex.service.settings_service"
    monkeypatch.setattr(f"{module}._FACTS_RETRY_SECONDS", 60.0)
    async with on_call(fake, clock, **SERVICE) as (service, pipeline, _):
        [session] = fake.sessions
        accept = session.update_prompt

        def fail(persona, *, history=None, on_done=None):
            fake.do(lambda: on_done(SessionFailed("too slow")))

        for count in range(1, 6):
            session.update_prompt = fail
            service.set_fact("a", f"There is tea {count}.")
            await pipeline.until(lambda n=count: len(errors(pipeline)) == n)
            session.update_prompt = accept
            service.set_fact("b", f"There is coffee {count}.")
            await pipeline.until(lambda n=count: len(prompts(fake)) == n)
            assert service._facts._timer is None
        session.update_prompt = fail
        service.set_fact("a", "There is no tea.")
        await pipeline.until(lambda: len(errors(pipeline)) == 6)
        assert service._facts._timer is not None, "the first failure since a success: retried"


async def test_a_role_that_comes_again_is_no_fact(fake: FakeEngine, clock: ManualClock) -> None:
    async with on_call(fake, clock) as (_, pipeline, _):
        role = {"role": "system", "content": "You are Ann."}
        await pipeline.send(LLMContextFrame(LLMContext([role])))
        await pipeline.until(lambda: prompts(fake))
        fact = {"role": "system", "content": "It rains."}
        await pipeline.send(LLMContextFrame(LLMContext([dict(role), fact])))
        await pipeline.until(lambda: len(prompts(fake)) == 2)
        assert prompts(fake)[-1] == "You are Ann. Information: It rains."


async def test_a_call_starts_with_the_facts_of_its_caller(fake: FakeEngine) -> None:
    async def account(service: PersonaPlexLLMService) -> str:
        await asyncio.sleep(0.05)
        return "The caller is Ann Lee."

    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(), ground=account, service=SERVICE),
    ):
        assert fake.sessions[0].persona.text_prompt == f"{ROLE} Information: The caller is Ann Lee."


async def test_facts_that_are_late_follow_by_a_new_prompt(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_memory, "GROUND_SECONDS", 0.05)
    found = asyncio.Event()

    async def account(service: PersonaPlexLLMService) -> str:
        await found.wait()
        return "The caller is Ann Lee."

    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(), ground=account, service=SERVICE) as call,
    ):
        assert fake.sessions[0].persona.text_prompt == ROLE
        found.set()
        await call.until(lambda: prompts(fake))
        assert "Ann Lee" in prompts(fake)[0]


async def test_a_lookup_of_the_caller_that_fails_costs_the_facts_alone(fake: FakeEngine) -> None:
    async def account(service: PersonaPlexLLMService) -> str:
        raise OSError("no database")

    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(), ground=account, service=SERVICE) as call,
    ):
        await call.until(lambda: call.errors)
        assert "no database" in call.errors[0]
        assert fake.sessions[0].persona.text_prompt == ROLE
