"""Resumption: conversations that continue after their connection broke."""

from __future__ import annotations

import time

import pytest

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import LimitReached, SessionLost
from pipecat_personaplex.remote import RemoteEngine, native_channel
from pipecat_personaplex.remote.delivery import MAX_IN_FLIGHT_FRAMES
from tests.remote.fakes import FakeServer
from tests.remote.helpers import Caller, log_lines, resuming, tone, until
from tests.remote.proxy import Proxy


def indices(caller: Caller) -> list[int]:
    return [frame.index for frame in caller.frames]


def test_a_cut_connection_resumes_with_the_next_frame() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        for index in range(6):
            caller.talk(index)
            server.cut()
        caller.talk(6)
        assert indices(caller) == list(range(7))
        assert len(server.conversations) == 1
        assert server.conversations["secret-0"].received == list(range(7))
        assert engine.stats().servers[0].sessions == 1


def test_lost_output_frames_are_delivered_once() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        caller.talk(0)
        server.silent = True
        for index in range(1, 4):
            caller.session.push(tone(index))
        until(lambda: len(server.conversations["secret-0"].outputs) == 4)
        server.silent = False
        server.cut()
        until(lambda: len(caller.frames) == 4)
        for _ in range(3):
            caller.next()
        caller.talk(4)
        assert indices(caller) == list(range(5))
        assert [round(float(frame.pcm[0]) * 1024) for frame in caller.frames] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("how", ["cut", "hold"])
def test_messages_sent_into_a_dead_network_are_sent_again(how: str) -> None:
    with (
        FakeServer() as server,
        Proxy(server.port) as proxy,
        RemoteEngine(proxy.url) as engine,
        log_lines() as lines,
    ):
        server.resume_seconds = 20
        caller = Caller(engine).ready()
        caller.talk(0)
        getattr(proxy, how)()
        caller.session.say("Are you there?")
        caller.session.update(SamplingParams(seed=3))
        for index in range(1, 20):
            caller.session.push(tone(index))
        pushed = time.monotonic()
        if how == "cut":
            until(lambda: resuming(lines, caller.session))
        else:
            until(lambda: caller.session.stats().queued_frames == 19 - MAX_IN_FLIGHT_FRAMES)
        # The outage must last for more than 80 ms: then every frame counts as late.
        until(lambda: time.monotonic() > pushed + 2 * FRAME_SECONDS)
        assert indices(caller) == [0]
        proxy.heal()
        until(lambda: len(caller.frames) == 20)
        assert indices(caller) == list(range(20))
        conversation = server.conversations["secret-0"]
        assert conversation.received == list(range(20))
        texts = [each["text"] for each in conversation.messages if each["type"] == "say"]
        assert texts == ["Are you there?"]
        assert caller.session.stats().dropped_frames == 0
        assert caller.session.stats().late_frames >= 19


def test_pings_detect_a_network_that_swallows_everything() -> None:
    with FakeServer() as server, Proxy(server.port) as proxy, RemoteEngine(proxy.url) as engine:
        server.resume_seconds = 20
        caller = Caller(engine).ready()
        caller.talk(0)
        proxy.swallow()
        caller.session.push(tone(1))
        proxy.heal()
        # Only pings can detect this: the first connection stays open and silent.
        caller.next()
        assert indices(caller) == [0, 1]


def test_the_session_is_lost_after_resume_seconds() -> None:
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


def test_queues_are_bounded_while_disconnected() -> None:
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
            assert round(float(caller.frames[-1].pcm[0]) * 1024) == 100, (
                "the newest frames are not dropped"
            )


def test_closing_a_disconnected_session_returns_at_once() -> None:
    server = FakeServer()
    server.resume_seconds = 20
    with server, RemoteEngine(server.url) as engine, log_lines() as lines:
        caller = Caller(engine).ready()
        server.stop()
        until(lambda: resuming(lines, caller.session))
        caller.session.close()
        assert caller.ended(timeout=2.0) is None


def test_closing_a_disconnected_session_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    # The client stays disconnected until the session is closed.
    monkeypatch.setattr(native_channel, "_MIN_BACKOFF_SECONDS", 60.0)
    with FakeServer() as server, RemoteEngine(server.url) as engine, log_lines() as lines:
        caller = Caller(engine).ready()
        caller.talk(0)
        server.cut()
        until(lambda: resuming(lines, caller.session))
        caller.session.close()
        assert caller.ended() is None
        until(lambda: not server.open)
        assert server.resumed == 1, "the slot is freed by a close after a resumption"
