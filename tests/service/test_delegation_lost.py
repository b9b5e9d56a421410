"""Answers that break off or get lost, with Pipecat's worker and an LLM behind HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from pipecat.frames.frames import UserStartedSpeakingFrame, UserStoppedSpeakingFrame
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm.backend_llm_worker import BackendOutput

from pipecat_personaplex import Hold
from tests.helpers.delegation import delegated_call
from tests.helpers.engines import FakeEngine
from tests.helpers.llm import Rule, StubLLM

pytestmark = pytest.mark.realtime

SORRY = "I could not find that out."
HOLD = Hold.until_decided(router=lambda text: True)
ASKED_AGAIN = "Neither a message nor a valid tool call"
BROKEN_CALL = Rule("close", "", "opening_hours", "{not json")
EMPTY = Rule("close", "")


async def opening_hours(params: FunctionCallParams, day: str) -> None:
    """When we are open.

    Args:
        day: The day.
    """
    await params.result_callback("until nine")


@pytest.mark.parametrize("mark", [">> ", "", "checking\n>> "])
async def test_what_a_broken_run_has_written_is_neither_spoken_nor_a_fact(
    fake: FakeEngine, mark: str
) -> None:
    torn = Rule("order", f"{mark}Your order is confirmed for two", breaks="overloaded")
    async with (
        StubLLM([torn]) as llm,
        delegated_call(fake, llm.worker(), hold=HOLD) as call,
    ):
        await call.says("I would like to order.")
        await call.until(lambda: call.errors)
        await asyncio.sleep(0.5)
        [session] = fake.sessions
        assert session.said == [SORRY] and not session.prompts
        assert not call.agent.delegation_state.working
        # The next turn is answered, and the backend learns what was not told.
        llm.rules = [Rule("order", ">> Two teas are ordered.")]
        await call.says("Please order two teas.")
        await call.until(lambda: len(session.said) == 2)
        assert session.said[1] == "Two teas are ordered."
        assert ("broke off" in llm.asked[-1]) == (">>" in mark)


@pytest.mark.parametrize("lost", [BROKEN_CALL, EMPTY], ids=["broken call", "empty"])
async def test_a_lost_answer_is_asked_for_again(fake: FakeEngine, lost: Rule) -> None:
    again = Rule(ASKED_AGAIN, ">> We close at nine.")
    async with (
        StubLLM([lost, again]) as llm,
        delegated_call(fake, llm.worker([opening_hours]), hold=HOLD) as call,
    ):
        await call.says("When do you close?")
        [session] = fake.sessions
        await call.until(lambda: session.said)
        assert session.said == ["We close at nine."] and not call.errors
        assert len(llm.requests) == 2


@pytest.mark.parametrize("lost", [BROKEN_CALL, EMPTY], ids=["broken call", "empty"])
async def test_an_answer_that_is_lost_twice_costs_one_sorry(fake: FakeEngine, lost: Rule) -> None:
    async with (
        StubLLM([lost, replace(lost, pattern=ASKED_AGAIN)]) as llm,
        delegated_call(fake, llm.worker([opening_hours]), hold=HOLD) as call,
    ):
        await call.says("When do you close?")
        await call.until(lambda: call.errors)
        [session] = fake.sessions
        assert session.said == [SORRY]
        assert call.errors == ["the backend has twice sent neither a message nor a tool call"]
        assert len(llm.requests) == 2
        llm.rules = [Rule("tea", ">> Yes, we have tea.")]
        await call.says("Do you have tea?")
        await call.until(lambda: len(session.said) == 2)
        assert session.said[1] == "Yes, we have tea." and len(call.errors) == 1


async def test_an_answer_that_joins_the_work_and_is_lost_is_asked_for_again(
    fake: FakeEngine,
) -> None:
    rules = [EMPTY, Rule(ASKED_AGAIN, ">> We close at nine.")]
    async with (
        StubLLM(rules, delay=0.5) as llm,
        delegated_call(fake, llm.worker(), hold=HOLD) as call,
    ):
        await call.says("Hello.")
        await call.until(lambda: llm.requests)
        await call.says("When do you close?")
        [session] = fake.sessions
        await call.until(lambda: session.said)
        assert session.said == ["We close at nine."]
        assert len(llm.requests) == 3


async def test_messages_that_the_application_drops_are_not_lost(fake: FakeEngine) -> None:
    async def only_spoken(output: BackendOutput) -> BackendOutput | None:
        return output if output.prefers_spoken else None

    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(transform_output=only_spoken), hold=HOLD) as call,
    ):
        await call.says("Hello there.")
        await call.until(lambda: llm.requests)
        await call.until(lambda: not call.agent.delegation_state.working)
        await asyncio.sleep(0.3)
        assert len(llm.requests) == 1
        assert not fake.sessions[0].said and not call.errors


async def test_a_speech_to_text_service_that_fails_in_mid_call_holds_no_later_turn(
    fake: FakeEngine, warnings_logged: list[str]
) -> None:
    async with (
        StubLLM() as llm,
        delegated_call(fake, llm.worker(), transcript_secs=0.1) as call,
    ):
        state = call.agent.delegation_state
        await call.says("Hello there.")
        await call.until(lambda: llm.requests and not state.working)
        for held in (True, True, False):
            await call.worker.queue_frame(UserStartedSpeakingFrame())
            await asyncio.sleep(0.3)
            assert state.held == held
            await call.worker.queue_frame(UserStoppedSpeakingFrame())
            await asyncio.sleep(0.3)
            assert not state.held
        assert sum("the speech-to-text service has failed" in each for each in warnings_logged) == 1
