"""A new prompt while words are forced, or while the agent is held."""

from __future__ import annotations

import queue
from collections.abc import Iterator

import pytest

from bots.drive_thru import RESTAURANT
from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import TEXT_EPAD, TEXT_PAD
from tests.helpers.calls import WAIT, Call
from tests.helpers.questions import question_and_pause

WAITER = Persona("NATF2", RESTAURANT)
USER = question_and_pause(120)


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load("nano", EngineConfig(device="cpu", dtype="float32", max_sessions=2)) as engine:
        yield engine


@pytest.mark.parametrize("every", [1, 7])
def test_every_word_is_said_once(nano: Engine, every: int) -> None:
    text = "We have coffee, tea and lemon juice."
    call = Call(nano, WAITER, sampling=SamplingParams(seed=3))
    done: queue.Queue[object] = queue.Queue()
    speech = call.session.say(text, when="now")
    said = ""
    for index, pcm in enumerate(USER):
        if index % every == 0:
            call.session.update_prompt(WAITER, on_done=done.put)
            assert done.get(timeout=WAIT) is None
        said += call.answer(pcm).text
        if speech.state == "said":
            break
    assert speech.state == "said"
    assert said.count(text) == 1, said
    call.hang_up()


def test_a_held_agent_stays_silent(nano: Engine) -> None:
    call = Call(nano, WAITER, sampling=SamplingParams(seed=3))
    done: queue.Queue[object] = queue.Queue()
    call.session.hold(8.0)
    for index, pcm in enumerate(USER[:90]):
        if index % 5 == 0:
            call.session.update_prompt(WAITER, on_done=done.put)
            assert done.get(timeout=WAIT) is None
        assert call.answer(pcm).text_token in (TEXT_PAD, TEXT_EPAD)
    call.hang_up()
