"""Calls that move to another server because their own is lost or stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from bots.drive_thru import RESTAURANT
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    EngineFailed,
    PersonaPlexError,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.interface import ALL_FEATURES
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.calls import SILENCE
from tests.helpers.engines import FakeSession
from tests.helpers.questions import question_and_pause
from tests.helpers.servers import RunningServer, ServedFakeEngine, ServeProcess
from tests.remote.fakes import FakeServer
from tests.remote.helpers import Caller, log_lines, tone, until
from tests.remote.proxy import Proxy
from tests.remote.test_faults import Pace

TEA = Persona("NATM1", "You sell tea.")
WAITER = Persona("NATF2", RESTAURANT)
GREEDY = SamplingParams.greedy()
ASKED_AT = 21  # frame in which the question begins
QUESTION = question_and_pause(40)


class Node:
    """A server with a fake engine behind a proxy."""

    def __init__(self) -> None:
        self.fake = ServedFakeEngine()
        self._stack = ExitStack()

    def __enter__(self) -> Node:
        config = ServerConfig(resume_seconds=2.0)
        self.server = self._stack.enter_context(RunningServer(self.fake, config))
        self.port = int(self.server.url.rpartition(":")[2])
        self._network = ExitStack()
        self.proxy = self._network.enter_context(Proxy(self.port))
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._stack.close()

    def die(self) -> None:
        """Refuse connections from now on, and break those that exist, as a killed process does."""
        self._network.close()

    @property
    def session(self) -> FakeSession:
        """The only session of this server."""
        (session,) = self.fake.sessions
        return session


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    with Node() as one, Node() as two:
        yield one, two


def connected(nodes: tuple[Node, Node], **options: bool) -> RemoteEngine:
    return RemoteEngine([node.proxy.url for node in nodes], **options)


def opened(engine: RemoteEngine, nodes: tuple[Node, Node]) -> tuple[Caller, Node, Node]:
    """Open a session; return its caller, its server and the other one."""
    until(lambda: all(server.reachable for server in engine.stats().servers))
    caller = Caller(engine).ready()
    first, second = nodes if nodes[0].fake.sessions else reversed(nodes)
    return caller, first, second


def test_a_call_goes_on_at_another_server(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine, log_lines() as lines:
        caller, first, second = opened(engine, nodes)
        id = caller.session.id
        sent = caller.talk(*range(40))
        caller.session.update(SamplingParams(seed=7))
        caller.talk(40)
        began = time.monotonic()
        first.die()
        for index in range(41, 45):
            caller.session.push(tone(index))
        frames = [caller.next() for _ in range(4)]
        assert time.monotonic() - began < 2.0
        assert [frame.index for frame in caller.frames] == list(range(45))
        for index, frame in enumerate(frames, 41):
            np.testing.assert_array_equal(frame.pcm, tone(index))
        session = second.session
        assert session.sampling == SamplingParams(seed=7)
        assert session.opened_with is not None
        assert len(session.opened_with.tokens) == 41
        assert session.opened_with.tokens[0, 0] == sent[0].text_token
        expected = np.concatenate([tone(index) for index in range(9, 41)])
        np.testing.assert_array_equal(session.opened_with.caller, expected)
        assert caller.session.id == id
        moved = [message for owner, message in lines if owner == id and "has moved" in message]
        assert len(moved) == 1 and session.id in moved[0]
        assert engine.stats().refused == 0 and engine.stats().dropped_frames == 0


def test_a_call_moves_more_than_once(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine:
        caller, first, second = opened(engine, nodes)
        caller.talk(0, 1)
        for node, other in ((first, second), (second, first)):
            before = len(other.fake.sessions)
            for session in node.fake.open_sessions:
                session.fail(EngineFailed("it failed"))
            until(lambda other=other, before=before: len(other.fake.sessions) > before)
            caller.talk(2, 3)
        assert [frame.index for frame in caller.frames] == list(range(6))
        history = first.fake.sessions[1].opened_with
        assert history is not None and len(history.tokens) == 4
        assert len(history.caller) == 4 * 1_920


def test_what_the_agent_was_told_moves_with_the_call(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine:
        caller, first, second = opened(engine, nodes)
        session, done = caller.session, list[object]()
        said = session.say("one", on_done=done.append)
        spoken = session.say("two three four", on_done=done.append)
        waiting = session.say("five six", on_done=done.append)
        cut = session.say("seven", on_done=done.append)
        caller.talk(0, 1)
        until(lambda: (said.state, spoken.spoken) == ("said", 1))
        session.update_prompt(TEA)
        session.hold(10)
        until(lambda: session.persona == TEA and first.session.holds)
        first.fake.step.clear()
        first.die()
        session.hush(cut)
        session.push(tone(2))
        until(lambda: second.fake.sessions)
        other = second.session
        caller.next()
        assert other.persona == TEA
        assert 5 < other.holds[0] <= 10
        assert (other.said, other.said_when) == (["three four", "five six"], ["now", "pause"])
        assert cut.state == "cut"
        caller.talk(*range(3, 6))
        until(lambda: len(done) == 4)
        assert done == [said, cut, spoken, waiting] or done == [cut, said, spoken, waiting]
        assert [one.state for one in (said, spoken, waiting)] == ["said"] * 3
        assert [one.spoken for one in (said, spoken, waiting)] == [1, 3, 2]
        first.fake.step.set()


def test_a_prompt_update_in_flight_is_requested_again(nodes: tuple[Node, Node]) -> None:
    for node in nodes:
        node.fake.ready = False
    with connected(nodes) as engine:
        until(lambda: all(server.reachable for server in engine.stats().servers))
        caller, done = Caller(engine), list[object]()
        until(lambda: nodes[0].fake.sessions or nodes[1].fake.sessions)
        first, second = nodes if nodes[0].fake.sessions else reversed(nodes)
        first.session.make_ready()
        caller.ready().talk(0)
        caller.session.update_prompt(TEA, on_done=done.append)
        until(lambda: first.session.prompts)
        first.die()
        until(lambda: second.fake.sessions and second.session.prompts)
        second.session.finish_prompt()
        until(lambda: done == [None])
        assert caller.session.persona == TEA


def test_a_server_that_stops_hands_its_calls_over(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine:
        caller, first, second = opened(engine, nodes)
        caller.talk(*range(5))
        first.server.stop()
        until(lambda: second.fake.sessions)
        caller.talk(5, 6)
        assert [frame.index for frame in caller.frames] == list(range(7))
        until(lambda: not first.fake.open_sessions)
        assert first.session.error is None, "the client has closed the old session"
        assert first.server.wait_stopped(5.0), "a server without sessions stops at once"


def test_a_call_stays_while_no_other_server_has_room(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine, log_lines() as lines:
        caller, first, second = opened(engine, nodes)
        caller.talk(0)

        def refuse(session: FakeSession) -> None:
            second.fake.sessions.remove(session)
            raise SessionFailed("no")

        second.fake.on_open = refuse
        first.server.stop()
        until(lambda: any("no other server takes the call" in message for _, message in lines))
        caller.talk(1, 2)
        assert [frame.index for frame in caller.frames] == [0, 1, 2]
        second.fake.on_open = lambda session: None
        first.server.stop()  # the second request ends the sessions
        until(lambda: second.fake.sessions)
        caller.talk(3)
        assert caller.frames[-1].index == 3


def test_a_session_moves_before_it_is_ready(nodes: tuple[Node, Node]) -> None:
    for node in nodes:
        node.fake.ready = False
        node.fake.features = frozenset({"say"})
    with connected(nodes) as engine:
        until(lambda: all(server.reachable for server in engine.stats().servers))
        caller = Caller(engine)
        until(lambda: nodes[0].fake.sessions or nodes[1].fake.sessions)
        first, second = nodes if nodes[0].fake.sessions else reversed(nodes)
        first.die()
        until(lambda: second.fake.sessions)
        assert second.session.opened_with is None
        second.session.make_ready()
        caller.ready().talk(0)


@pytest.mark.parametrize(
    "why", ["not wanted", "other cannot", "other is full", "other lacks the voice"]
)
def test_a_call_that_cannot_move_ends(nodes: tuple[Node, Node], why: str) -> None:
    with connected(nodes, move_calls=why != "not wanted") as engine:
        until(lambda: all(server.reachable for server in engine.stats().servers))
        caller = Caller(engine).ready()
        first, second = nodes if nodes[0].fake.sessions else reversed(nodes)
        caller.talk(0)
        if why == "other cannot":
            second.fake.features = ALL_FEATURES - {"history"}
        elif why == "other is full":
            second.fake.max_sessions = 0
        elif why == "other lacks the voice":
            second.fake.voices[:] = ["NATM1"]
        first.session.fail(EngineFailed("it failed"))
        error = caller.ended()
        assert isinstance(error, PersonaPlexError)
        if why == "not wanted":
            assert type(error) is EngineFailed
        assert not second.fake.sessions


def test_a_session_that_another_client_has_resumed_does_not_move() -> None:
    with FakeServer() as server, Node() as node:
        server.features = sorted(ALL_FEATURES)
        with RemoteEngine([server.url, node.proxy.url]) as engine:
            until(lambda: all(each.reachable for each in engine.stats().servers))
            node.fake.max_sessions = 0
            until(lambda: engine.stats().servers[1].max_sessions == 0)
            caller = Caller(engine).ready()
            caller.talk(0)
            node.fake.max_sessions = 4
            until(lambda: engine.stats().servers[1].max_sessions == 4)
            taken_over(server)
            error = caller.ended()
            assert type(error) is SessionLost and "another client" in str(error)
            assert not node.fake.sessions


def taken_over(server: FakeServer) -> None:
    """Close the connections as a server does whose session has been resumed elsewhere."""

    async def close() -> None:
        for connection in list(server._server.connections):
            await connection.close(4001)

    asyncio.run_coroutine_threadsafe(close(), server._loop).result(10)


def test_a_failed_session_does_not_move(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine:
        caller, first, second = opened(engine, nodes)
        caller.talk(0)
        first.session.fail(SessionFailed("the audio was bad"))
        assert type(caller.ended()) is SessionFailed
        assert not second.fake.sessions


def test_close_while_a_call_moves(nodes: tuple[Node, Node]) -> None:
    with connected(nodes) as engine, log_lines() as lines:
        caller, first, second = opened(engine, nodes)
        caller.talk(0)
        second.proxy.hold()
        first.die()
        until(lambda: any("the call moves" in message for _, message in lines))
        caller.session.close()
        assert caller.ended(timeout=5.0) is None
        second.proxy.heal()
    until(lambda: not second.fake.open_sessions)


class AskingPace(Pace):
    """The callers ask what is on the menu, from frame ``ASKED_AT`` on for about 1.5 s."""

    def audio(self, index: int) -> np.ndarray:
        first = ASKED_AT - 4
        return QUESTION[index - first] if 0 <= index - first < len(QUESTION) else SILENCE


@pytest.mark.serial
def test_a_killed_server_with_a_real_model() -> None:
    """A call goes on at another server, also in mid-question; callers there lose no frame."""
    options = ("--model", "nano", "--max-sessions", 4)
    with ServeProcess(*options) as one, ServeProcess(*options) as two:
        with RemoteEngine([one.url, two.url]) as engine, log_lines() as lines:
            until(lambda: all(server.reachable for server in engine.stats().servers))
            callers = [Caller(engine, WAITER, GREEDY).ready() for _ in range(2)]
            assert [server.sessions for server in engine.stats().servers] == [1, 1]
            with AskingPace(*callers) as pace:
                until(lambda: all(len(caller.frames) > ASKED_AT + 8 for caller in callers))
                one.kill()
                until(lambda: any("the connection broke" in message for _, message in lines))
                noticed = time.monotonic()
                (lost,) = (
                    caller
                    for caller in callers
                    if any("broke" in m and id == caller.session.id for id, m in lines)
                )
                until(lambda: any("the call has moved" in message for _, message in lines))
                count = len(lost.frames)
                until(lambda: len(lost.frames) > count)
                seconds = time.monotonic() - noticed
                print(f"\nkilled: the call went on {seconds:.2f} s after the client had noticed")
                assert seconds < 2.0
                until(lambda: all(len(caller.frames) > 100 for caller in callers))
            moved = [owner for owner, message in lines if "the call has moved" in message]
            assert moved == [lost.session.id]
            for caller in callers:
                said = "".join(frame.text for frame in caller.frames)
                assert "shakshuka" in said, said  # the question is answered
                until(
                    lambda caller=caller: (
                        len(caller.frames) + caller.session.dropped_frames == pace.pushed
                    )
                )
                assert [frame.index for frame in caller.frames] == list(range(len(caller.frames)))
                if caller is not lost:
                    assert caller.session.dropped_frames == 0
