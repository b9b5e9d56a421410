"""Random interleavings of turns, tools, interruptions and failures, with a fake clock.

``FakeBackend`` does what Pipecat's worker does; ``test_delegation_joined.py`` has a real one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipecat_personaplex.interface import MAX_HOLD_SECONDS
from pipecat_personaplex.service.delegation.delegation_actions import (
    Action,
    Cut,
    Fail,
    HoldFor,
    Reattach,
    Release,
    Remember,
    Say,
    Send,
)
from pipecat_personaplex.service.delegation.delegation_state import (
    PAUSE_SECONDS,
    DelegationState,
)
from pipecat_personaplex.service.delegation.delegation_times import (
    TRANSCRIPT_SECONDS,
    DelegationTimes,
)
from pipecat_personaplex.service.delegation.hold import Hold
from tests.helpers.fake_backend import FakeBackend

TIMEOUT = 8.0
DECISION = 1.0
# The texts below are shorter than 3 s.
SPEECH = PAUSE_SECONDS + 2 * 3.0 * 3


@dataclass
class Text:
    key: int
    text: str
    purpose: str
    started: bool = False


class World:
    """A caller, an agent that speaks texts one by one, and a backend."""

    def __init__(self, hold: Hold, own: bool):
        self.state = DelegationState(
            DelegationTimes(hold, ("One moment.",), 0.9, TIMEOUT, "I am sorry.", "Go ahead.")
        )
        self.hold = hold
        self.now = 0.0
        self.count = 0
        self.backend = self._new_backend(own)
        self.inbox: list[Send] = []  # on their way to the backend
        self.texts: list[Text] = []
        self.turn = 0
        self.lost = False  # a request of this turn
        self.caller_speaks = False
        self.held_since: float | None = None
        self.held_until = 0.0
        self.heard: list[str] = []
        self.reached: Counter[str] = Counter()
        self.activity = 0.0  # when the caller, a tool or an answer last renewed a hold

    def _new_backend(self, own: bool) -> FakeBackend:
        return FakeBackend(own, lambda: self.unique("call"), self.answer)

    def unique(self, name: str) -> str:
        self.count += 1
        return f"{name}{self.count}"

    def answer(self, sees: int) -> str:
        return f"{self.unique('Answer ')} to turn {sees}."

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case HoldFor(seconds):
                    self.reached["held"] += 1
                    assert 0 < seconds <= MAX_HOLD_SECONDS
                    self.held_since = self.held_since if self.held else self.now
                    self.held_until = self.now + seconds
                case Release():
                    self.held_since = None
                case Send():
                    self.reached["stale"] += "who has spoken since" in action.text
                    self.reached["asked again"] += "Neither a message" in action.text
                    self.reached["untold"] += "Not told" in action.text
                    self.inbox.append(action)
                case Say(key, text, purpose):
                    assert not text.startswith("Torn")
                    if purpose == "answer":
                        assert text not in self.heard
                        assert text not in [each.text for each in self.texts]
                    self.texts.append(Text(key, text, purpose))
                    self.activity = self.now
                case Cut(keys):
                    for each in [each for each in self.texts if each.key in keys]:
                        self.end_text(each, said=False)
                case Reattach():
                    self.backend = self._new_backend(self.backend.own)
                    self.inbox.clear()
                case Remember(text):
                    assert not text.startswith("Torn")
                case Fail():
                    pass

    def end_text(self, text: Text, *, said: bool) -> None:
        if text not in self.texts:
            return
        self.texts.remove(text)
        self.reached["cut"] += not said
        if said:
            self.heard.append(text.text)
        words = text.text.split() if said else text.text.split()[: 1 if text.started else 0]
        self.do(self.state.speech_ended(self.now, text.key, words, said))

    @property
    def held(self) -> bool:
        return self.held_since is not None and self.now < self.held_until

    def check(self) -> None:
        assert self.state.deadline is None or self.state.deadline < self.now + 60
        if self.backend.run_sees == self.turn > self.backend.done and not self.lost:
            self.reached["run with the newest turn"] += 1
            assert self.state.working
        if self.held:
            # Every hold ends within its bound after what renewed it last.
            bound = MAX_HOLD_SECONDS if self.caller_speaks else max(TIMEOUT, DECISION) + SPEECH
            assert self.now - self.activity <= bound + TRANSCRIPT_SECONDS

    # What may happen.

    def caller_starts(self) -> None:
        self.caller_speaks, self.activity = True, self.now
        self.do(self.state.caller_started(self.now))

    def caller_stops(self) -> None:
        if self.caller_speaks:
            self.caller_speaks, self.activity = False, self.now
            self.do(self.state.caller_stopped(self.now))

    def turn_ends(self, *, accepted: bool = False) -> None:
        self.turn += 1
        self.lost = False
        self.activity = self.now
        self.do(self.state.turn_ended(self.now, accepted=accepted))

    def turn_ends_accepted(self) -> None:
        self.turn_ends(accepted=self.hold.mode != "never")

    def router_accepts(self) -> None:
        if self.hold.mode != "never":
            self.activity = self.now
            self.do(self.state.accepted(self.now))

    def request_arrives(self) -> None:
        if self.inbox:
            self.backend.take(self.inbox.pop(0))

    def request_is_lost(self) -> None:
        if self.inbox:
            send = self.inbox.pop(0)
            self.lost = True
            self.do(self.state.send_failed(self.now, send.request, "not attached"))

    def event_arrives(self) -> None:
        if not self.backend.outbox:
            return
        kind, value = self.backend.outbox.pop(0)
        match kind, value:
            case "sent", (request, idle):
                self.do(self.state.sent(self.now, request, idle))
            case "noted", text:
                self.do(self.state.noted(self.now, text))
            case "tool", (call, ended):
                self.activity = self.now
                self.do(self.state.tool(self.now, call, ended=ended))
            case "spoken", text:
                self.do(self.state.spoken(self.now, text))
            case "failed", reason:
                self.do(self.state.failed(self.now, reason))
            case "idle", _:
                works_on = self.backend.works_on()
                self.reached["early idle"] += works_on is True
                self.do(self.state.idle(self.now, works_on=works_on))

    def backend_dies(self) -> None:
        self.backend = self._new_backend(self.backend.own)
        self.inbox.clear()
        self.do(self.state.detached(self.now, "it ended"))

    def agent_begins_a_text(self) -> None:
        if self.texts and not self.caller_speaks and not self.texts[0].started:
            text = self.texts[0]
            if text.text.startswith("Answer"):
                # The right question: the newest that has been put to the backend.
                [sees] = re.findall(r"to turn (\d+)", text.text)
                assert int(sees) == self.turn
            text.started = True
            self.reached[f"{text.purpose} begun"] += 1
            self.do(self.state.speech_started(self.now, text.key))

    def agent_ends_a_text(self) -> None:
        if self.texts and self.texts[0].started:
            self.end_text(self.texts[0], said=True)

    def caller_cuts_a_text(self) -> None:
        if self.texts and self.texts[0].started and self.caller_speaks:
            for text in list(self.texts):
                self.end_text(text, said=False)

    def agent_talks(self, speaks: bool) -> None:
        self.do(self.state.agent_speaks(self.now, speaks))

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        steps = 0
        while self.state.deadline is not None and self.state.deadline <= end:
            self.now = max(self.now, self.state.deadline)
            self.do(self.state.tick(self.now))
            steps += 1
            assert steps < 100, "a deadline that does not pass"
            self.check()
        self.now = end
        self.check()


def whole_turn(world: World) -> None:
    world.caller_starts()
    world.pass_time(0.5)
    world.caller_stops()
    world.pass_time(0.3)
    world.turn_ends()


# What may happen, and how often.
MOMENTS: list[tuple[int, str, Callable[[World], object]]] = [
    (6, "whole turn", whole_turn),
    (1, "caller starts", World.caller_starts),
    (2, "caller stops", World.caller_stops),
    (1, "turn ends", World.turn_ends),
    (1, "turn ends, accepted", World.turn_ends_accepted),
    (2, "router accepts", World.router_accepts),
    (1, "request is lost", World.request_is_lost),
    (1, "backend dies", World.backend_dies),
    (6, "text begins", World.agent_begins_a_text),
    (4, "text ends", World.agent_ends_a_text),
    (1, "text is cut", World.caller_cuts_a_text),
    (1, "agent talks", lambda world: world.agent_talks(True)),
    (2, "agent pauses", lambda world: world.agent_talks(False)),
    (3, "tool ends", lambda world: world.backend.end_tool()),
    (1, "run fails", lambda world: world.backend.fail("")),
    (2, "run breaks off", lambda world: world.backend.fail("note spoken")),
    (1, "run ends silent", lambda world: world.backend.end_run("")),
    (2, "run ends with a note", lambda world: world.backend.end_run("note")),
    (5, "run ends spoken", lambda world: world.backend.end_run("spoken")),
    (2, "run ends with both", lambda world: world.backend.end_run("note spoken")),
    (4, "run calls a tool", lambda world: world.backend.end_run("tool")),
    (1, "run speaks and calls a tool", lambda world: world.backend.end_run("tool spoken")),
    (3, "0.1 s", lambda world: world.pass_time(0.1)),
    (2, "1 s", lambda world: world.pass_time(1.0)),
    (1, "5 s", lambda world: world.pass_time(5.0)),
]
ACTIONS = {name: act for _, name, act in MOMENTS}
NAMES = [name for weight, name, _ in MOMENTS for _ in range(weight)]
HOLDS = [Hold.never(), Hold.when(lambda text: True), Hold.until_decided(DECISION)]


def run(hold: Hold, own: bool, moments: list[tuple[str, bool]]) -> World:
    """Let moments happen; the flag of each tells whether messages arrive before the next."""
    world = World(hold, own)
    for name, arrive in moments:
        ACTIONS[name](world)
        world.check()
        while arrive and (world.inbox or world.backend.outbox):
            world.request_arrives()
            world.event_arrives()
        world.pass_time(0.06)  # a note and the spoken part of another message are apart
    # Whatever has happened: once everybody is silent, the agent is free and nothing is pending.
    world.caller_stops()
    world.agent_talks(False)
    world.pass_time(120.0)
    assert not world.held and not world.state.held
    assert world.state.deadline is None
    return world


INTERLEAVINGS = given(
    hold=st.sampled_from(HOLDS),
    own=st.booleans(),
    moments=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from([True, True, True, False])),
        min_size=10,
        max_size=40,
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@INTERLEAVINGS
def test_no_interleaving_mutes_repeats_or_answers_the_wrong_question(
    hold: Hold, own: bool, moments: list[tuple[str, bool]]
) -> None:
    run(hold, own, moments)


@pytest.mark.measurement
@settings(max_examples=1_000, deadline=None, suppress_health_check=list(HealthCheck))
@INTERLEAVINGS
def test_none_of_a_thousand_interleavings_does(
    hold: Hold, own: bool, moments: list[tuple[str, bool]]
) -> None:
    run(hold, own, moments)


def test_interleavings_reach_what_they_are_about() -> None:
    """Otherwise the test above could not fail."""
    random = Random(1)
    reached = Counter[str]()
    for _ in range(200):
        moments = [(random.choice(NAMES), random.random() < 0.75) for _ in range(40)]
        reached += run(random.choice(HOLDS), random.random() < 0.5, moments).reached
    wanted = {"answer begun", "sorry begun", "filler begun", "stale", "untold", "held", "cut"}
    wanted |= {"early idle", "asked again", "run with the newest turn"}
    assert all(reached[name] >= 10 for name in wanted), reached
