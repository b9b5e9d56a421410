"""Summaries, requests and tools of a delegation."""

from __future__ import annotations

import pytest
from pipecat.frames.frames import (
    OutputTransportMessageUrgentFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams

from pipecat_personaplex.errors import (
    ConfigError,
    SpeechTooLong,
)
from pipecat_personaplex.service.delegation.backend_link import BackendUnavailable
from pipecat_personaplex.service.delegation.delegation import Delegation
from pipecat_personaplex.service.delegation.tool_schemas import FunctionSchema
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.helpers.delegation import DelegatedCall, delegated_call
from tests.helpers.engines import FakeEngine
from tests.helpers.llm import Rule, StubLLM
from tests.service.test_facts import ROLE, SERVICE, prompts

pytestmark = pytest.mark.realtime


async def test_a_summary_of_the_call_stays_in_the_prompt(fake: FakeEngine) -> None:
    async with StubLLM() as llm:
        llm.summary = "The caller wants a burger."
        context = LLMContext([{"role": "user", "content": "I want a burger."}])
        async with delegated_call(
            fake, llm.worker(), context=context, summary_secs=0.3, service=SERVICE
        ) as call:
            await call.says("A big one.")
            await call.until(lambda: prompts(fake))
            summary = "Earlier in this call: The caller wants a burger."
            assert prompts(fake)[-1] == f"{ROLE} Information: {summary}"
            bodies = [body for body in llm.requests if not body.get("stream")]
            assert "USER: I want a burger." in str(bodies[0])


async def test_a_request_that_the_backend_did_not_take_is_part_of_the_next(
    fake: FakeEngine,
) -> None:
    async with StubLLM() as llm, delegated_call(fake, llm.worker(), service=SERVICE) as call:
        link = call.agent._delegator._link
        send = link.send

        async def away(request: str) -> bool:
            link.send = send
            raise BackendUnavailable("the kitchen is away")

        link.send = away
        await call.says("Two teas please.")
        await call.until(lambda: call.error_frames)
        await call.says("And a coffee.")
        await call.until(lambda: llm.asked)
        assert "Two teas please." in llm.asked[-1] and "And a coffee." in llm.asked[-1]


async def test_an_empty_summary_loses_nothing_of_the_call(
    fake: FakeEngine, warnings_logged: list[str]
) -> None:
    async with StubLLM() as llm:
        llm.summary = " "
        context = LLMContext([{"role": "user", "content": "I want a burger."}])
        async with delegated_call(
            fake, llm.worker(), context=context, summary_secs=0.3, service=SERVICE
        ) as call:
            await call.says("A big one.")
            await call.until(lambda: any("no summary" in line for line in warnings_logged))
            llm.summary = "The caller wants a burger."
            await call.until(lambda: prompts(fake))
            bodies = [body for body in llm.requests if not body.get("stream")]
            assert "USER: I want a burger." in str(bodies[-1])


async def test_registered_functions_and_tools_of_the_context_are_the_backends(
    fake: FakeEngine, warnings_logged: list[str]
) -> None:
    called: list[str] = []

    async def order(params: FunctionCallParams) -> None:
        called.append(params.arguments["item"])
        await params.result_callback("ordered")

    schema = FunctionSchema("order", "Order an item", {"item": {"type": "string"}}, ["item"])
    rule = Rule("tea", ">> Your tea is on its way.", "order", {"item": "tea"})
    async with StubLLM([rule]) as llm:
        agent = PersonaPlexLLMService(fake, delegation=Delegation(llm.worker()), **SERVICE)
        agent.register_function("order", order)
        async with DelegatedCall(agent, LLMContext(tools=[schema])) as call:
            await call.says("A tea please.")
            await call.until_said("Your tea is on its way.")
    assert called == ["tea"]
    assert not [warning for warning in warnings_logged if "tools" in warning]


async def test_clients_see_each_tool_call(fake: FakeEngine) -> None:
    async def order(params: FunctionCallParams, item: str) -> None:
        """Order an item.

        Args:
            item: Its name.
        """
        await params.result_callback("ordered")

    rule = Rule("tea", ">> Your tea is on its way.", "order", {"item": "tea"})
    async with (
        StubLLM([rule]) as llm,
        delegated_call(fake, llm.worker([order]), rtvi=True, service=SERVICE) as call,
    ):
        await call.says("A tea please.")
        await call.until_said("Your tea is on its way.")
        seen = [f.message["type"] for f in call.ear.seen(OutputTransportMessageUrgentFrame)]
        calls = [kind for kind in seen if kind.startswith("llm-function-call")]
        assert calls == [
            "llm-function-call-started",
            "llm-function-call-in-progress",
            "llm-function-call-stopped",
        ]


async def test_a_backend_elsewhere_has_to_have_its_own_tools(
    fake: FakeEngine, warnings_logged: list[str]
) -> None:
    async def order(params: FunctionCallParams) -> None:
        """Order."""

    async with delegated_call(
        fake, "clerk", context=LLMContext(tools=[order]), service=SERVICE
    ) as call:
        await call.says("A tea please.")
        await call.until(lambda: [w for w in warnings_logged if "the backend worker itself" in w])


async def test_words_that_the_session_refuses_are_reported_and_told_to_the_backend(
    fake: FakeEngine,
) -> None:
    async with (
        StubLLM([Rule("close", ">> We close at nine.")]) as llm,
        delegated_call(fake, llm.worker(), service=SERVICE) as call,
    ):
        [session] = fake.sessions
        say = session.say

        def refuse(text, **options):
            session.say = say
            raise SpeechTooLong(2_000, 1_500)

        session.say = refuse
        await call.says("When do you close?")
        await call.until(lambda: call.error_frames)
        assert "cannot be spoken" in call.error_frames[0].error
        await call.says("Hello?")
        await call.until(lambda: 'Not told to the user: "We close at nine."' in llm.asked[-1])


async def test_an_interrupted_answer_stands_in_the_context_as_it_was_heard(
    fake: FakeEngine,
) -> None:
    rule = Rule("close", ">> One two three four five six seven eight nine ten eleven twelve.")
    async with (
        StubLLM([rule]) as llm,
        delegated_call(fake, llm.worker(), service=SERVICE) as call,
    ):
        await call.says("When do you close?")
        await call.until_said("three")
        call.agent.hush()
        await call.until(lambda: len(call.messages) == 2)
        role, heard = call.messages[1]
        assert role == "assistant" and heard == call.words
        assert heard.startswith("One two three") and "twelve" not in heard
        await call.says("And now?")
        await call.until(lambda: len(llm.asked) == 2)
        assert f'after: "{heard}"' in llm.asked[1]


def test_an_engine_that_cannot_steer_is_refused_when_the_service_is_made() -> None:
    with FakeEngine(features=frozenset()) as engine:
        with pytest.raises(ConfigError, match=r"engine that supports hold, prompt, say.*serve"):
            PersonaPlexLLMService(engine, delegation=Delegation("clerk"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": None}, "backend must be a BackendLLMWorker"),
        ({"backend": ""}, "backend must be a BackendLLMWorker"),
        ({"hold": 1.0}, r"hold must be Hold\.never"),
        ({"filler": "One moment."}, "filler is a list"),
        ({"filler_after": -1}, "filler_after must be at least 0"),
        ({"timeout_secs": 0}, "timeout_secs must be"),
        ({"transcript_secs": 31}, "transcript_secs must be more than 0 and at most 30 s, not 31"),
        ({"summary_secs": 0}, "summary_secs must be more than 0"),
        ({"ground": "Ann"}, "ground must be a coroutine function"),
    ],
)
def test_what_a_delegation_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Delegation(**{"backend": "clerk", **options})
