"""What a delegation decides, with a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipecat_personaplex.service.delegation.delegation_actions import (
    Action,
    Cut,
    Fail,
    HoldFor,
    Release,
    Remember,
    Say,
    Send,
    Warn,
)
from pipecat_personaplex.service.delegation.delegation_state import DelegationState
from pipecat_personaplex.service.delegation.delegation_times import (
    TRANSCRIPT_SECONDS,
    DelegationTimes,
)
from pipecat_personaplex.service.delegation.hold import Hold

TIMES = DelegationTimes(
    hold=Hold.until_decided(1.0),
    filler=("One moment.", "Let me check."),
    filler_after=0.9,
    timeout=20.0,
    sorry="Sorry, I do not know.",
    unanswered="Sorry, go ahead.",
)


def said(actions: list[Action]) -> list[str]:
    return [action.text for action in actions if isinstance(action, Say)]


def sent(actions: list[Action]) -> Send:
    [send] = [action for action in actions if isinstance(action, Send)]
    return send


def asked(times: DelegationTimes = TIMES) -> tuple[DelegationState, Send]:
    """A state whose caller has asked from 0 to 2 s; the backend has the request at 2.3 s."""
    state = DelegationState(times)
    state.caller_started(0.0)
    state.caller_stopped(2.0)
    send = sent(state.turn_ended(2.3))
    state.sent(2.3, send.request, True)
    return state, send


def test_the_agent_is_held_from_the_start_of_the_turn() -> None:
    state = DelegationState(TIMES)
    assert state.caller_started(0.0) == [HoldFor(30.0)]
    assert state.caller_stopped(2.0) == [HoldFor(TRANSCRIPT_SECONDS)]
    hold, send = state.turn_ended(2.3)[::-1]
    assert hold == HoldFor(pytest.approx(1.0)) and isinstance(send, Send)


def test_the_end_of_no_turn_holds_nothing() -> None:
    state = DelegationState(TIMES)
    assert state.caller_stopped(2.0) == [] and not state.held


def test_a_slow_transcript_is_waited_for_when_told_so() -> None:
    state = DelegationState(replace(TIMES, transcript=8.0))
    state.caller_started(0.0)
    assert state.caller_stopped(2.0) == [HoldFor(8.0)]
    assert state.tick(9.9) == [] and state.held
    state.tick(10.0)
    assert not state.held


def test_nothing_to_add_releases_the_agent_at_once() -> None:
    state, _ = asked()
    assert state.noted(2.6, "Nothing.") == []
    assert state.idle(2.6) == [Release()]
    assert not state.held and state.deadline is None


def test_a_turn_that_the_router_accepts_waits_for_the_backend() -> None:
    state = DelegationState(TIMES)
    state.caller_started(0.0)
    state.caller_stopped(2.0)
    hold, send = state.turn_ended(2.3, accepted=True)[::-1]
    assert hold == HoldFor(pytest.approx(20.0)) and isinstance(send, Send)
    state.sent(2.3, send.request, True)
    assert said(state.tick(3.3)) == ["One moment."]  # before the backend has called a tool
    assert state.tick(4.0) == []
    assert state.noted(4.5, "nothing") == []
    assert said(state.idle(4.5)) == ["Sorry, go ahead."]  # the model has missed its moment


def test_a_router_that_answers_late_prolongs_the_hold() -> None:
    state, _ = asked()
    assert state.accepted(3.0) == [HoldFor(pytest.approx(19.3))]
    assert state.tick(3.4) == []


def test_after_an_answer_the_router_is_heard_in_the_next_turn() -> None:
    state, _ = asked(replace(TIMES, hold=Hold.when(lambda text: True)))
    [key] = [each.key for each in state.spoken(2.6, "At nine.") if isinstance(each, Say)]
    state.idle(2.6)
    state.speech_ended(4.0, key, ["At", "nine."], True)
    state.accepted(4.1)  # about the turn that has been answered
    assert not state.held
    state.caller_started(5.0)
    assert state.accepted(5.2) == [HoldFor(30.0)]


def test_a_caller_whom_a_long_hold_leaves_unanswered_is_not_ignored() -> None:
    state, _ = asked(replace(TIMES, hold=Hold.until_decided(3.0)))
    assert state.tick(5.4) == [Release()]
    state.noted(6.0, "nothing")
    assert said(state.idle(6.0)) == ["Sorry, go ahead."]
    state, _ = asked(replace(TIMES, hold=Hold.until_decided(3.0)))
    state.tick(5.4)
    state.agent_speaks(5.6, True)  # the model answers after all
    state.noted(6.0, "nothing")
    assert said(state.idle(6.0)) == []


def test_a_backend_that_does_not_decide_in_time_leaves_the_turn_to_the_model() -> None:
    state, _ = asked()
    assert state.tick(3.31) == [Release()]
    # Its late answer is spoken, and no other comes in between.
    assert said(state.spoken(5.0, "We close at nine.")) == ["We close at nine."]
    assert state.held


def test_the_backend_learns_what_of_a_long_answer_was_left_out() -> None:
    state, _ = asked()
    assert len(said(state.spoken(2.6, "One tea. " * 40))) == 30
    state.caller_started(9.0)
    request = sent(state.turn_ended(10.0, accepted=True)).text
    assert f'too long: "{" ".join(["One tea."] * 10)}"' in request


@pytest.mark.parametrize("text", ["nothing", '"Nothing."', "(none)"])
def test_nothing_to_say_is_neither_spoken_nor_a_fact(text: str) -> None:
    state, _ = asked()
    assert said(state.spoken(2.6, text)) == []
    assert not any(isinstance(action, Remember) for action in state.noted(2.7, text))


def test_a_tool_keeps_the_agent_silent_until_its_answer_is_spoken() -> None:
    state, _ = asked()
    state.tool(2.6, "call", ended=False)
    assert said(state.tick(3.5)) == ["One moment."]
    state.tool(4.0, "call", ended=True)
    actions = state.spoken(4.4, "We are open until nine. See you!")
    # The filler has not begun, so the answer replaces it.
    assert [type(action) for action in actions[:3]] == [Cut, Say, Say]
    [first, second] = [action.key for action in actions if isinstance(action, Say)]
    state.idle(4.4)
    assert state.held
    state.speech_started(4.6, first)
    state.speech_ended(6.0, first, "We are open until nine.".split(), True)
    assert state.held
    state.speech_started(6.1, second)
    assert state.speech_ended(7.0, second, ["See", "you!"], True) == [Release()]


def test_fillers_alternate_and_one_is_spoken_a_turn() -> None:
    state, _ = asked()
    state.tool(2.6, "a", ended=False)
    [filler] = [action for action in state.tick(3.5) if isinstance(action, Say)]
    state.speech_started(3.6, filler.key)
    state.speech_ended(4.5, filler.key, ["One", "moment."], True)
    state.tool(5.0, "b", ended=False)
    assert said(state.tick(6.5)) == []
    state.turn_ended(8.0)
    assert said(state.tick(9.0)) == ["Let me check."]


def test_a_hold_does_not_cut_the_agents_own_sentence() -> None:
    state = DelegationState(TIMES)
    state.agent_speaks(0.0, True)
    assert state.caller_started(0.5) == []
    assert state.agent_speaks(1.0, False) == [HoldFor(pytest.approx(29.5))]


def test_the_caller_corrects_himself_while_the_backend_works() -> None:
    state, _ = asked()
    state.tool(2.6, "call", ended=False)
    state.caller_started(3.0)
    state.caller_stopped(4.0)
    send = sent(state.turn_ended(4.2))
    state.sent(4.2, send.request, False)
    state.tool(4.5, "call", ended=True)
    # The run after the tool's result has seen the correction.
    assert said(state.spoken(5.0, "Tomorrow until six.")) == ["Tomorrow until six."]


def test_an_answer_to_the_turn_before_is_not_spoken_and_the_backend_learns_of_it() -> None:
    state, _ = asked()
    state.caller_started(2.4)
    state.caller_stopped(3.0)
    send = sent(state.turn_ended(3.2))
    state.sent(3.2, send.request, False)  # the model is at work without this turn
    actions = state.spoken(3.4, "We close at nine.")
    assert said(actions) == []
    told = sent(actions)
    assert "We close at nine." in told.text and not told.transcript
    state.sent(3.4, told.request, False)
    assert said(state.spoken(4.0, "Yes, we have tea.")) == ["Yes, we have tea."]


def test_an_answer_that_was_not_spoken_is_dropped_with_the_next_turn() -> None:
    state, _ = asked()
    [say] = [a for a in state.spoken(2.8, "We close at nine.") if isinstance(a, Say)]
    state.idle(2.8)
    state.caller_started(2.9)
    state.caller_stopped(4.0)
    actions = state.turn_ended(4.2)
    assert Cut((say.key,)) in actions
    assert 'Not told to the user: "We close at nine."' in sent(actions).text


def test_the_next_request_says_where_the_caller_interrupted() -> None:
    state, _ = asked()
    [say] = [a for a in state.spoken(2.8, "We are open until nine.") if isinstance(a, Say)]
    state.speech_started(3.0, say.key)
    state.caller_started(3.5)
    state.speech_ended(3.7, say.key, ["We", "are"], False)
    state.caller_stopped(4.5)
    assert 'after: "We are"' in sent(state.turn_ended(4.8)).text


@pytest.mark.parametrize(
    "fail",
    [
        lambda state, send: [
            *state.sent(2.4, send.request, True),
            *state.failed(3.0, "HTTP 500"),
        ],
        lambda state, send: state.detached(3.0, "it ended"),
        lambda state, send: state.send_failed(3.0, send.request, "not attached"),
        lambda state, send: state.tick(22.4),
    ],
)
def test_a_failure_is_reported_and_the_agent_says_sorry_once(
    fail: Callable[[DelegationState, Send], list[Action]],
) -> None:
    state = DelegationState(TIMES)
    state.caller_started(0.0)
    state.caller_stopped(2.0)
    send = sent(state.turn_ended(2.3))
    actions = fail(state, send)
    assert [action for action in actions if isinstance(action, Fail)]
    assert said(actions) == ["Sorry, I do not know."]
    assert said(state.failed(23.0, "again")) == []
    assert not state.working and not state.held


def test_a_backend_without_an_answer_after_a_long_hold_leaves_no_silence() -> None:
    state, _ = asked(replace(TIMES, filler=()))
    state.tool(2.6, "call", ended=False)
    state.tool(6.0, "call", ended=True)
    assert said(state.idle(6.5)) == ["Sorry, go ahead."]


def test_without_transcripts_no_turn_is_held() -> None:
    state = DelegationState(TIMES)
    state.caller_started(0.0)
    state.caller_stopped(1.0)
    assert state.tick(3.1) == [Release()]
    assert state.caller_started(5.0) == []


def test_two_turns_in_a_row_without_a_transcript_end_the_holds_with_one_warning() -> None:
    state, _ = asked()
    state.noted(2.6, "nothing")
    state.idle(2.6)
    warnings = []
    for now in (10.0, 20.0, 30.0, 40.0):
        held = bool(state.caller_started(now))
        assert held == (now < 30.0)
        state.caller_stopped(now + 1.0)
        warnings += [each for each in state.tick(now + 3.1) if isinstance(each, Warn)]
        assert not state.held and len(warnings) == (now > 10.0)
    # A turn with a transcript, after which noises end the holds again, without a warning.
    state.caller_started(50.0)
    state.caller_stopped(51.0)
    state.sent(51.3, sent(state.turn_ended(51.3)).request, True)
    state.noted(51.5, "nothing")
    state.idle(51.5)
    for now in (60.0, 70.0):
        assert state.caller_started(now) == [HoldFor(30.0)]
        state.caller_stopped(now + 1.0)
        assert state.tick(now + 3.1) == [Release()]
    assert state.caller_started(80.0) == []


def test_a_turn_that_follows_before_the_transcript_counts_the_one_before_as_missing() -> None:
    state, _ = asked()
    state.noted(2.6, "nothing")
    state.idle(2.6)
    for now in (10.0, 12.0):
        assert not any(isinstance(each, Warn) for each in state.caller_started(now))
        state.caller_stopped(now + 1.0)
    assert isinstance(state.caller_started(14.0)[0], Warn)


def test_a_call_that_does_not_hold_turns_does_not_warn_of_missing_transcripts() -> None:
    state, _ = asked(replace(TIMES, hold=Hold.when(lambda text: True)))
    for now in (10.0, 20.0, 30.0):
        state.caller_started(now)
        state.caller_stopped(now + 1.0)
        assert not any(isinstance(each, Warn) for each in state.tick(now + 3.1))


def test_a_noise_that_is_no_turn_does_not_end_the_hold_for_a_tool() -> None:
    state, _ = asked()
    state.tool(2.6, "call", ended=False)
    state.caller_started(3.0)
    state.caller_stopped(3.2)
    state.tick(5.3)
    assert state.held


def test_never_holds_nothing_and_speaks_answers() -> None:
    state, _ = asked(replace(TIMES, hold=Hold.never()))
    state.tool(2.6, "call", ended=False)
    assert said(state.spoken(3.4, "Nine.")) == ["Nine."]
    assert not state.held


def test_when_holds_from_the_accepted_transcript_on() -> None:
    state = DelegationState(replace(TIMES, hold=Hold.when(lambda text: True)))
    assert state.caller_started(0.0) == []
    assert state.accepted(0.5) == [HoldFor(30.0)]
    state.caller_stopped(2.0)
    state.sent(2.3, sent(state.turn_ended(2.3)).request, True)
    assert state.held
    state.tick(10.0)
    assert state.held  # not only until a decision
    state.noted(12.0, "nothing")
    assert said(state.idle(12.0)) == ["Sorry, go ahead."]
    assert state.caller_started(13.0) == []


def test_notes_are_remembered_unless_they_say_nothing() -> None:
    state, _ = asked()
    assert state.noted(2.5, "The order\n has shipped.") == [Remember("The order has shipped.")]
    assert state.noted(2.5, "nothing") == []
