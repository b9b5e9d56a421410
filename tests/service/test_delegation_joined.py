"""A turn that arrives while the backend works, with Pipecat's worker and an LLM behind HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker

from pipecat_personaplex import Hold
from pipecat_personaplex.service.delegation.backend_link import (
    BackendEvent,
    BackendIdle,
    BackendOutput,
)
from tests.helpers.delegation import DelegatedCall, delegated_call
from tests.helpers.engines import FakeEngine
from tests.helpers.llm import Rule, StubLLM
from tests.service.test_backend_link import Front, Running

pytestmark = pytest.mark.realtime

SORRY = "I could not find that out."
SOUP = Rule("soup", ">> We have soup.")
CLOSE = Rule("close", ">> We close at nine.")
RULES = [SOUP, CLOSE]
KINDS = pytest.mark.parametrize("own", [True, False], ids=["own", "named"])


@asynccontextmanager
async def call_of(
    engine: FakeEngine, worker: BackendLLMWorker, own: bool, **options: Any
) -> AsyncIterator[DelegatedCall]:
    """A call whose turns all need the backend, which is its own or registered elsewhere."""
    options = {"hold": Hold.until_decided(router=lambda text: True)} | options
    async with delegated_call(engine, worker if own else worker.name, **options) as call:
        if not own:
            await call.worker.add_workers(worker)
        yield call


async def says_two_turns(call: DelegatedCall, llm: StubLLM, first: str, second: str) -> None:
    """The second turn arrives in the first run of the model; returns in its second run."""
    await call.says(first)
    await call.until(lambda: llm.requests)
    await call.says(second)
    await call.until(lambda: len(llm.requests) == 2)
    assert f"USER: {second}" in str(llm.requests[-1])
    await asyncio.sleep(0.1)  # the report of idleness between the runs has arrived


async def works_until_the_second_answer(call: DelegatedCall) -> None:
    state = call.agent.delegation_state
    assert state.working and state.held
    await call.until(lambda: not state.working)


async def test_a_worker_reports_the_end_of_each_run_or_that_it_works_on() -> None:
    async with StubLLM(RULES, delay=0.5) as llm:
        front = Front(llm.worker())
        link = front.backend
        reported: list[bool | None] = []

        async def take(event: BackendEvent) -> None:
            front.events.append(event)
            if isinstance(event, BackendIdle):
                reported.append(link.works_on())

        link._on_event = take
        async with Running(front):
            assert await link.send("USER: soup?")
            assert not await link.send("USER: when do you close?")
            await front.until(BackendIdle, 2)
            assert reported == [True, False]
            kinds = [type(event) for event in front.events]
            assert kinds == [BackendOutput, BackendIdle, BackendOutput, BackendIdle]


@KINDS
async def test_a_turn_that_joins_the_work_is_awaited_until_it_is_answered(
    fake: FakeEngine, own: bool
) -> None:
    async with (
        StubLLM(RULES, delay=1.0) as llm,
        call_of(fake, llm.worker(), own) as call,
    ):
        await says_two_turns(call, llm, "Hello.", "When do you close?")
        state = call.agent.delegation_state
        assert state.working and state.held
        [session] = fake.sessions
        await call.until(lambda: session.said)
        assert session.said == ["We close at nine."]
        await call.until(lambda: not state.working and not state.held)
        assert session.said == ["We close at nine."] and not call.errors


@KINDS
async def test_an_answer_to_the_turn_before_does_not_end_the_work(
    fake: FakeEngine, own: bool
) -> None:
    async with (
        StubLLM([Rule("not told", "nothing"), *RULES], delay=1.0) as llm,
        call_of(fake, llm.worker(), own) as call,
    ):
        await says_two_turns(call, llm, "Do you have soup?", "When do you close?")
        await works_until_the_second_answer(call)
        assert fake.sessions[0].said == ["We close at nine."] and not call.errors


@KINDS
async def test_a_turn_that_joins_the_work_times_out(fake: FakeEngine, own: bool) -> None:
    async with (
        StubLLM(RULES, delay=0.8) as llm,
        call_of(fake, llm.worker(), own, timeout_secs=2.5) as call,
    ):
        await call.says("Hello.")
        await call.until(lambda: llm.requests)
        llm.delay = 30.0
        await call.says("When do you close?")
        await call.until(lambda: call.errors)
        assert len(llm.requests) == 2
        assert "did not finish within 2.5 s" in call.errors[0]
        assert fake.sessions[0].said == [SORRY]


@KINDS
async def test_a_failed_run_leaves_the_turn_that_has_joined_it_to_the_next(
    fake: FakeEngine, own: bool
) -> None:
    rules = [Rule("soup", ">> We have", breaks="overloaded"), CLOSE]
    async with (
        StubLLM(rules, delay=1.0) as llm,
        call_of(fake, llm.worker(), own) as call,
    ):
        await says_two_turns(call, llm, "Do you have soup?", "When do you close?")
        await works_until_the_second_answer(call)
        assert fake.sessions[0].said == ["We close at nine."]
        assert len(call.errors) == 1 and "overloaded" in call.errors[0]
