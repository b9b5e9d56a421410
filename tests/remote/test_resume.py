"""Connections that break, and conversations that do not."""

from __future__ import annotations

import time

import pytest

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.errors import LimitReached, SessionLost
from pipecat_personaplex.remote import RemoteEngine
from tests.remote.fakes import FakeServer
from tests.remote.helpers import Caller, tone, until
from tests.remote.proxy import Proxy


def indices(caller: Caller) -> list[int]:
    return [frame.index for frame in caller.frames]


def test_a_cut_connection_goes_on_with_the_next_frame() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        for index in range(6):
            caller.talk(index)
            server.cut()
        caller.talk(6)
        assert indices(caller) == list(range(7))
        assert len(server.conversations) == 1
        assert server.conversations["secret-0"].heard == list(range(7))
        assert engine.stats().servers[0].sessions == 1


def test_answers_that_were_lost_come_once() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        caller.talk(0)
        server.silent = True
        for index in range(1, 4):
            caller.session.push(tone(index))
        until(lambda: len(server.conversations["secret-0"].answers) == 4)
        server.silent = False
        server.cut()
        until(lambda: len(caller.frames) == 4)
        for _ in range(3):
            caller.next()
        caller.talk(4)
        assert indices(caller) == list(range(5))
        assert [round(float(frame.pcm[0]) * 1024) for frame in caller.frames] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["cut", "hold"])
def test_what_was_said_into_a_dead_network_is_said_again(how: str) -> None:
    with FakeServer() as server, Proxy(server.port) as proxy, RemoteEngine(proxy.url) as engine:
        server.resume_seconds = 20
        caller = Caller(engine).ready()
        caller.talk(0)
        getattr(proxy, how)()
        caller.session.say("Are you there?")
        caller.session.update(SamplingParams(seed=3))
        for index in range(1, 20):
            caller.session.push(tone(index))
        time.sleep(0.3)
        assert indices(caller) == [0]
        proxy.heal()
        until(lambda: len(caller.frames) == 20)
        assert indices(caller) == list(range(20))
        conversation = server.conversations["secret-0"]
        assert conversation.heard == list(range(20))
        said = [told["text"] for told in conversation.told if told["type"] == "say"]
        assert said == ["Are you there?"]
        assert caller.session.stats().dropped_frames == 0
        assert caller.session.stats().late_frames >= 19


def test_a_network_that_swallows_is_noticed() -> None:
    with FakeServer() as server, Proxy(server.port) as proxy, RemoteEngine(proxy.url) as engine:
        server.resume_seconds = 20
        caller = Caller(engine).ready()
        caller.talk(0)
        proxy.swallow()
        caller.session.push(tone(1))
        proxy.heal()
        # By pings alone: the first connection stays as dead as it was.
        caller.next()
        assert indices(caller) == [0, 1]


def test_past_the_window_the_session_is_lost() -> None:
    server = FakeServer()
    server.resume_seconds = 1.0
    with server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        caller.talk(0)
        server.stop()
        began = time.monotonic()
        error = caller.ended()
        assert isinstance(error, SessionLost) and "within 1 s" in str(error)
        assert "connection refused" in str(error)
        assert time.monotonic() - began >= 0.9


def test_frames_wait_in_bounds_while_nobody_hears_them() -> None:
    with FakeServer() as server, Proxy(server.port) as proxy:
        with RemoteEngine(proxy.url, max_queued_frames=4) as engine:
            server.resume_seconds = 20
            caller = Caller(engine).ready()
            caller.talk(0)
            proxy.cut()
            for index in range(1, 100):
                caller.session.push(tone(index))
                caller.session.update(SamplingParams(seed=index))
            with pytest.raises(LimitReached):
                for _ in range(1000):
                    caller.session.say("Hello?")
            proxy.heal()
            until(lambda: len(caller.frames) + caller.session.stats().dropped_frames == 100)
            stats = caller.session.stats()
            assert stats.frames <= 1 + 8 + 4 and stats.queued_frames == 0
            assert round(float(caller.frames[-1].pcm[0]) * 1024) == 100, "the newest are kept"


def test_a_session_closed_while_it_is_cut_off_ends_at_once() -> None:
    server = FakeServer()
    server.resume_seconds = 20
    with server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        server.stop()
        time.sleep(0.3)
        caller.session.close()
        assert caller.ended(timeout=2.0) is None


def test_a_session_closed_while_it_is_cut_off_gives_its_slot_back() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        caller.talk(0)
        server.cut()
        until(lambda: not server.connected)
        time.sleep(0.05)  # for the news to arrive
        caller.session.close()
        assert caller.ended() is None
        until(lambda: not server.open)
