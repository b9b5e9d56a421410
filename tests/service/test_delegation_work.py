"""Which run of the backend's model a message is of, and when its work is over; a fake clock."""

from __future__ import annotations

import pytest

from pipecat_personaplex.service.delegation.delegation_actions import (
    Action,
    Fail,
    Release,
    Remember,
    Send,
)
from pipecat_personaplex.service.delegation.delegation_state import DelegationState
from tests.service.test_delegation_state import TIMES, asked, said, sent

WORKS_ON = pytest.mark.parametrize("works_on", [True, None], ids=["own", "named"])


def requests(actions: list[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, Send)]


def joined() -> DelegationState:
    """A caller who has asked at 2.3 s, and again at 4.0 s in the run that this has begun."""
    state, _ = asked()
    state.caller_started(3.0)
    state.caller_stopped(3.8)
    send = sent(state.turn_ended(4.0, accepted=True))
    state.sent(4.0, send.request, False)
    return state


@WORKS_ON
@pytest.mark.parametrize("silent", [False, True])
def test_idleness_between_two_runs_ends_nothing(works_on: bool | None, silent: bool) -> None:
    state = joined()
    if not silent:
        state.noted(7.0, "nothing")  # to the first turn
    assert state.idle(7.0, works_on=works_on) == []
    assert state.working and state.held
    assert said(state.spoken(8.0, "We close at nine.")) == ["We close at nine."]


def test_a_named_backend_has_finished_with_the_next_message() -> None:
    state = joined()
    state.noted(7.0, "nothing")
    state.idle(7.0, works_on=None)
    state.noted(8.0, "nothing")
    assert state.working
    assert said(state.tick(8.2)) == ["Sorry, go ahead."]  # as after any report of idleness
    assert not state.working and not state.held


def test_a_named_backend_that_has_got_another_turn_reports_its_end() -> None:
    state = joined()
    state.noted(7.0, "nothing")
    state.idle(7.0, works_on=None)
    send = sent(state.turn_ended(7.5))
    state.sent(7.5, send.request, False)
    state.noted(8.0, "nothing")  # to the second turn
    assert not requests(state.tick(8.2)) and state.working
    state.idle(8.2, works_on=None)
    state.noted(9.0, "nothing")
    state.tick(9.2)
    assert not state.working


def test_an_own_backend_is_idle_at_its_word() -> None:
    state = joined()
    state.noted(5.0, "nothing")
    assert isinstance(state.idle(5.0, works_on=False)[0], Send)  # about the second turn


def test_a_turn_after_the_last_message_of_a_named_backend_is_not_finished_with_it() -> None:
    state = joined()
    state.idle(7.0, works_on=None)
    state.noted(8.0, "nothing")
    state.sent(8.05, sent(state.turn_ended(8.05)).request, True)
    assert not requests(state.tick(8.2)) and state.working


@pytest.mark.parametrize("first", ["tool", "message"])
def test_a_named_backend_that_calls_a_tool_has_not_finished(first: str) -> None:
    state = joined()
    state.noted(7.0, "nothing")
    state.idle(7.0, works_on=None)
    if first == "message":
        state.noted(8.0, "I shall look it up.")
    state.tool(8.0, "call", ended=False)
    if first == "tool":
        state.spoken(8.0, "Let me see.")
    state.tick(9.0)
    assert state.working
    state.tool(9.0, "call", ended=True)
    state.spoken(9.5, "At nine.")
    state.tick(9.7)
    assert not state.working


@pytest.mark.parametrize("call", [False, True])
def test_a_named_backend_whose_next_run_has_written_is_idle_at_its_word(call: bool) -> None:
    state = joined()
    if call:  # its result brings a run that has the second turn in view
        state.tool(5.0, "call", ended=False)
        state.tool(6.0, "call", ended=True)
    else:
        state.noted(5.0, "nothing")
        state.spoken(7.0, "At nine.")
    state.idle(7.0, works_on=None)
    assert not state.working


@WORKS_ON
def test_a_run_that_hangs_after_idleness_times_out(works_on: bool | None) -> None:
    state = joined()
    state.idle(7.0, works_on=works_on)
    actions = state.tick(24.1)
    assert said(actions) == [TIMES.sorry] and [each for each in actions if isinstance(each, Fail)]
    assert not state.working


@WORKS_ON
def test_a_failed_run_is_no_failure_of_the_turn_that_it_had_not_seen(works_on: bool | None) -> None:
    state = joined()
    assert state.failed(7.0, "overloaded") == [Fail("overloaded")]
    assert state.spoken(7.0, "We have") == []
    assert state.idle(7.0, works_on=works_on) == []
    assert state.working and state.held
    assert said(state.spoken(7.2, "We close at nine.")) == ["We close at nine."]
    assert said(state.failed(8.0, "overloaded")) == []


def test_a_failed_run_may_be_followed_by_the_next_without_a_report() -> None:
    state = joined()
    state.failed(7.0, "overloaded")
    assert said(state.spoken(8.0, "We close at nine.")) == ["We close at nine."]


def test_the_run_of_a_turn_that_has_waited_may_fail_as_well() -> None:
    state = joined()
    state.failed(7.0, "overloaded")
    state.idle(7.0, works_on=True)
    assert said(state.failed(8.0, "overloaded")) == [TIMES.sorry]


def test_a_failed_run_is_no_failure_of_a_turn_that_is_on_its_way() -> None:
    state, _ = asked()
    state.caller_started(3.0)
    state.caller_stopped(3.8)
    send = sent(state.turn_ended(4.0))
    assert state.failed(4.0, "overloaded") == [Fail("overloaded")]
    state.idle(4.0)
    state.sent(4.1, send.request, True)
    assert said(state.spoken(5.0, "We close at nine.")) == ["We close at nine."]


@WORKS_ON
def test_two_failed_runs_are_no_failure_of_a_turn_that_is_on_its_way(works_on: bool | None) -> None:
    state = joined()
    send = sent(state.turn_ended(6.0))
    assert state.failed(6.0, "overloaded") == [Fail("overloaded")]
    state.idle(6.0, works_on=works_on)
    assert state.failed(6.1, "overloaded") == [Fail("overloaded")]
    state.sent(6.2, send.request, True)
    assert said(state.spoken(7.0, "We close at nine.")) == ["We close at nine."]


def test_what_a_failed_run_has_written_is_dropped_and_the_backend_learns_of_it() -> None:
    state, _ = asked()
    assert said(state.failed(3.0, "overloaded")) == [TIMES.sorry]
    assert state.noted(3.01, "The order is confirmed.") == []
    assert state.spoken(3.01, "Your order is confirmed for two") == []
    state.idle(3.01)
    assert not state.working
    send = sent(state.turn_ended(6.0))
    assert 'it broke off: "Your order is confirmed for two"' in send.text


@pytest.mark.parametrize("next_run", ["idle", "request", "tool", "later"])
def test_after_a_failure_the_next_run_is_heard(next_run: str) -> None:
    state, _ = asked()
    state.failed(3.0, "overloaded")
    match next_run:
        case "idle":
            state.idle(3.0)
        case "request":
            state.sent(3.1, sent(state.turn_ended(3.1)).request, True)
        case "tool":
            state.tool(3.1, "call", ended=True)
    fact = [Remember("The order has shipped.")]
    assert state.noted(4.0 if next_run == "later" else 3.2, "The order has shipped.") == fact


def test_a_message_with_a_note_that_follows_a_note_of_the_old_run_is_spoken() -> None:
    state = joined()
    state.noted(5.0, "nothing")
    state.noted(6.0, "checking")
    assert said(state.spoken(6.0, "We close at nine.")) == ["We close at nine."]


def test_parts_of_two_messages_that_follow_closely_are_told_apart() -> None:
    state = joined()
    assert said(state.spoken(5.0, "We have soup.")) == []
    assert said(state.spoken(5.02, "We close at nine.")) == ["We close at nine."]
    state, _ = asked()
    state.noted(3.99, "checking")
    send = sent(state.turn_ended(4.0))
    state.sent(4.0, send.request, False)
    assert said(state.spoken(4.01, "We have soup.")) == []


def test_a_request_without_a_message_is_asked_again_once() -> None:
    state, _ = asked()
    [send] = state.idle(2.6)
    assert isinstance(send, Send) and "write only: nothing" in send.text and not send.transcript
    assert state.working and state.held
    state.sent(2.6, send.request, True)
    actions = state.idle(3.0)
    assert said(actions) == [TIMES.sorry] and isinstance(actions[0], Fail)
    assert not state.working and not state.held
    # The next turn has a second try of its own, also after one that was answered.
    for now in (5.0, 8.0):
        state.sent(now, sent(state.turn_ended(now)).request, True)
        send = sent(state.idle(now + 1.0))
        state.sent(now + 1.0, send.request, True)
        state.noted(now + 2.0, "nothing")
        state.idle(now + 2.0)


def test_a_note_of_the_turn_before_is_no_answer_to_this_one() -> None:
    state = joined()
    state.noted(7.0, "nothing")
    state.idle(7.0, works_on=True)
    assert isinstance(state.idle(8.0)[0], Send)


def test_what_answers_the_turn_before_a_lost_one_is_not_spoken() -> None:
    state = joined()
    send = sent(state.turn_ended(5.0))
    state.send_failed(5.1, send.request, "not attached")
    told = sent(state.spoken(6.0, "We have soup."))  # to the first turn
    state.sent(6.0, told.request, False)  # and with it the lost turn
    told = sent(state.spoken(7.0, "We close at nine."))  # to the second turn
    state.sent(7.0, told.request, False)
    assert said(state.spoken(8.0, "Yes, we have tea.")) == ["Yes, we have tea."]


def test_what_was_lost_is_not_asked_again_after_a_sorry() -> None:
    state, _ = asked()
    send = sent(state.turn_ended(4.0))
    assert said(state.send_failed(9.0, send.request, "no acknowledgement")) == [TIMES.sorry]
    told = sent(state.spoken(9.5, "We have soup."))  # to the turn before
    state.sent(9.5, told.request, True)
    assert not requests(state.idle(10.0)) and not state.working


def test_nothing_is_asked_again_after_an_answer_a_tool_or_dropped_messages() -> None:
    state, _ = asked()
    state.spoken(2.6, "At nine.")
    state.idle(2.6)
    assert not state.working
    state, _ = asked()
    state.tool(2.6, "call", ended=False)
    state.tool(2.7, "call", ended=True)
    state.idle(2.8)
    assert not state.working
    state, _ = asked()
    assert state.idle(2.6, filtered=True) == [Release()]
