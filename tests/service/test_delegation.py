"""Delegation in a real pipeline: nano, Pipecat's worker, and an LLM behind HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import (
    ErrorFrame,
    ExternalFunctionCallInProgressFrame,
    ExternalFunctionCallResultFrame,
    ExternalFunctionCallsStartedFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams

from pipecat_personaplex import Engine, EngineConfig, Hold, PersonaPlexLLMService
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.service.delegation import backend_link, delegator
from tests.helpers.delegation import delegated_call
from tests.helpers.llm import Rule, StubLLM
from tests.helpers.questions import QUESTION

pytestmark = pytest.mark.realtime

SETTINGS = PersonaPlexLLMService.Settings(
    voice="NATF2",
    system_instruction="You work for Yellow Bird which is a restaurant and your name is Anna.",
)
NANO = {"settings": SETTINGS}
SORRY = "I could not find that out."
HOURS = Rule("close", ">> We are open until nine tonight.", "opening_hours", {"day": "today"})
HOURS_KNOWN = Rule("close", ">> We are open until nine tonight.")


async def opening_hours(params: FunctionCallParams, day: str) -> None:
    """When we are open.

    Args:
        day: The day.
    """
    await asyncio.sleep(0.1)
    await params.result_callback({"until": "nine tonight"})


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=2)) as engine:
        yield engine


async def test_a_tools_answer_is_spoken_and_clients_see_the_call(nano: Engine) -> None:
    async with (
        StubLLM([HOURS]) as llm,
        delegated_call(nano, llm.worker([opening_hours]), service=NANO) as call,
    ):
        await call.says("When do you close?")
        await call.until_said("nine tonight.")
        assert call.words == "We are open until nine tonight."  # and no invented answer before it
        for kind in (
            ExternalFunctionCallsStartedFrame,
            ExternalFunctionCallInProgressFrame,
            ExternalFunctionCallResultFrame,
        ):
            assert len(call.ear.seen(kind)) == 1
        await call.until(lambda: len(call.messages) == 2)
        assert call.messages == [
            ("user", "When do you close?"),
            ("assistant", "We are open until nine tonight."),
        ]
        assert "USER: When do you close?" in llm.asked[0]
        assert not call.errors and not call.ear.seen(ErrorFrame)


async def test_the_model_answers_by_itself_where_the_backend_has_nothing_to_add(
    nano: Engine,
) -> None:
    async with (
        StubLLM() as llm,
        delegated_call(nano, llm.worker(), service=NANO) as call,
    ):
        await call.says("Hello there.")
        await call.until(lambda: llm.requests)
        await call.until(lambda: not call.agent.delegation_state.working)
        assert not call.agent.delegation_state.held
        assert SORRY not in call.words and not call.errors


async def test_an_answer_with_a_dash_between_words_ends_the_hold_and_counts_as_told(
    nano: Engine,
) -> None:
    async with (
        StubLLM([Rule("close", ">> We are open - until nine tonight.")]) as llm,
        delegated_call(nano, llm.worker(), service=NANO) as call,
    ):
        await call.says("When do you close?")
        await call.until_said("nine tonight.")
        await call.until(lambda: not call.agent.delegation_state.held, 3)
        await call.says("Hello there.")
        await call.until(lambda: len(llm.requests) == 2)
        assert "Not told" not in llm.asked[-1]


@pytest.mark.parametrize("failure", ["http", "slow", "refused"])
async def test_a_failing_backend_costs_one_sorry_and_serves_the_next_turn(
    nano: Engine, failure: str
) -> None:
    async with (
        StubLLM([HOURS_KNOWN]) as llm,
        delegated_call(nano, llm.worker(), service=NANO, timeout_secs=1.5) as call,
    ):
        match failure:
            case "http":
                llm.broken = 400
            case "slow":
                llm.delay = 30.0
            case "refused":
                llm.broken = 401
        await call.says("When do you close?")
        await call.until_said(SORRY)
        assert len(call.errors) == 1
        await call.until(lambda: call.error_frames)
        assert call.words.count("Sorry") + call.words.count("could not") == 1
        llm.broken, llm.delay = None, 0.0
        await call.says("Please, when do you close?")
        await call.until_said("nine tonight.")
        assert call.agent.session_id is not None


async def test_a_backend_that_is_not_there_costs_one_sorry(
    nano: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_link, "ATTACH_SECONDS", 0.3)
    async with delegated_call(nano, "clerk", service=NANO) as call:
        await call.says("When do you close?")
        await call.until_said(SORRY)
        [message] = call.errors
        assert "the backend clerk took no request" in message


async def test_a_tool_that_raises_leaves_the_answer_to_the_backends_model(nano: Engine) -> None:
    async def broken(params: FunctionCallParams) -> None:
        """Look up the stock."""
        raise OSError("the database is gone")

    rule = Rule("tea", ">> I cannot look that up now.", "broken")
    async with (
        StubLLM([rule]) as llm,
        delegated_call(nano, llm.worker([broken]), service=NANO) as call,
    ):
        await call.says("Do you have tea?")
        await call.until_said("look that up now.")
        assert not call.errors


@pytest.mark.parametrize("arguments", ["{not json", {"hour": 3}])
async def test_wrong_tool_arguments_leave_the_call_running(nano: Engine, arguments: Any) -> None:
    wrong = Rule("close", ">> Let me get back to you.", "opening_hours", arguments)
    async with (
        StubLLM([wrong, Rule("tea", ">> Yes, we have tea.")]) as llm,
        delegated_call(nano, llm.worker([opening_hours]), service=NANO, timeout_secs=2.0) as call,
    ):
        await call.says("When do you close?")
        await call.until(lambda: llm.requests and not call.agent.delegation_state.working)
        await call.says("And tea?")
        await call.until_said("we have tea.")


def words_of(path: Path) -> np.ndarray:
    """A recording without the silence around its words, int16 [n]."""
    pcm = read_audio(path)
    loud = np.flatnonzero(np.abs(pcm) > 0.02)
    return (pcm[loud[0] : loud[-1] + 1] * 32_767).astype(np.int16)


async def test_an_answer_waits_while_the_caller_speaks(nano: Engine) -> None:
    async with (
        StubLLM([HOURS_KNOWN], delay=0.3) as llm,
        delegated_call(nano, llm.worker(), service=NANO) as call,
    ):
        await call.says("When do you close?")
        call.microphone = np.concatenate([words_of(QUESTION)] * 3)
        await call.until(lambda: len(llm.requests) == 1)
        await call.until(lambda: not call.agent.delegation_state.working)
        while len(call.microphone) > 12_000:
            assert call.words == ""
            await asyncio.sleep(0.05)
        await call.until_said("nine tonight.")


async def test_a_correction_joins_the_work_and_the_old_answer_is_not_spoken(nano: Engine) -> None:
    rules = [
        Rule("no, the menu", ">> We have spicy shakshuka."),
        Rule("close", ">> We are open until nine tonight."),
    ]
    async with (
        StubLLM(rules, delay=1.0) as llm,
        delegated_call(nano, llm.worker(), service=NANO) as call,
    ):
        await call.says("When do you close?")
        await call.until(lambda: len(llm.requests) == 1)
        await call.says("Oh no, the menu please.")
        await call.until_said("shakshuka.")
        assert "nine" not in call.words
        assert any(
            'Not told to the user, who has spoken since: "We are open' in each
            for each in map(str, llm.requests)
        )


async def test_a_long_answer_ends_with_its_sixtieth_word(nano: Engine) -> None:
    answer = "One two three four five six seven eight nine ten. " * 12
    spoken: list[str] = []
    async with (
        StubLLM([Rule("count", f">> {answer}")]) as llm,
        delegated_call(nano, llm.worker(), service=NANO) as call,
    ):
        call.agent.speak = lambda text: spoken.append(text.text)
        await call.says("Please count.")
        await call.until(lambda: spoken)
        assert len(" ".join(spoken).split()) == 60


async def test_speech_without_transcripts_is_warned_of_and_changes_nothing(
    nano: Engine, monkeypatch: pytest.MonkeyPatch, warnings_logged: list[str]
) -> None:
    monkeypatch.setattr(delegator, "NO_TRANSCRIPT_SECONDS", 0.3)
    async with (
        StubLLM() as llm,
        delegated_call(nano, llm.worker(), service=NANO) as call,
    ):
        # The detector of speech takes the first frame of a call for noise.
        call.microphone = np.concatenate([np.zeros(12_000, np.int16), words_of(QUESTION)])
        await call.until(lambda: any("no transcript" in each for each in warnings_logged))
        assert not llm.requests and not call.agent.delegation_state.held


async def test_tools_of_the_service_work_as_in_pipecats_documentation(nano: Engine) -> None:
    async with StubLLM([HOURS]) as llm:
        context = LLMContext(tools=[opening_hours])
        async with delegated_call(nano, llm.worker(), context=context, service=NANO) as call:
            await call.says("When do you close?")
            await call.until_said("nine tonight.")
            assert call.ear.seen(ExternalFunctionCallResultFrame)[0].result == {
                "until": "nine tonight"
            }


async def test_the_default_hold_outlasts_its_second_in_a_turn_about_a_tool(nano: Engine) -> None:
    async with (
        StubLLM([HOURS], delay=1.5) as llm,
        delegated_call(nano, llm.worker([opening_hours]), service=NANO) as call,
    ):
        await call.says("When are you open, when do you close?")
        await call.until(lambda: llm.requests)
        await asyncio.sleep(1.3)
        assert len(llm.requests) == 1 and call.agent.delegation_state.held
        await call.until_said("nine tonight.")
        assert call.words == "We are open until nine tonight."


async def test_hold_when_lets_the_model_answer_what_no_tool_is_about(nano: Engine) -> None:
    async with (
        StubLLM([HOURS], delay=0.5) as llm,
        delegated_call(nano, llm.worker([opening_hours]), hold=Hold.when(), service=NANO) as call,
    ):
        await call.says("How are you?")
        await call.until(lambda: llm.requests)
        assert not call.agent.delegation_state.held
        await call.says("When are you open, when do you close?")
        await call.until(lambda: call.agent.delegation_state.held)
        await call.until_said("nine tonight.")


async def test_a_filler_is_spoken_while_a_tool_works(nano: Engine) -> None:
    async def slow(params: FunctionCallParams) -> None:
        """Look up the stock."""
        await asyncio.sleep(3.0)
        await params.result_callback("yes")

    async with (
        StubLLM([Rule("tea", ">> Yes, we have tea.", "slow")]) as llm,
        delegated_call(
            nano, llm.worker([slow]), filler=("One moment please.",), filler_after=0.3, service=NANO
        ) as call,
    ):
        await call.says("Do you have tea?")
        await call.until_said("we have tea.")
        assert call.words == "One moment please. Yes, we have tea."
