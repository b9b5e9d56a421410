"""Servers that stay connected and do not respond: every session ends by a time limit."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from pipecat_personaplex.errors import EngineUnreachable, SessionFailed, SessionLost
from pipecat_personaplex.remote import RemoteEngine, native_channel
from tests.remote.fakes import FakeServer, say
from tests.remote.helpers import Caller, log_lines, resuming, tone
from tests.remote.test_server_pool import greet

pytestmark = pytest.mark.realtime


async def listen(websocket: ServerConnection) -> None:
    """Receive until the caller closes the session."""
    while '"close"' not in str(await websocket.recv()):
        pass


def test_a_prompt_that_is_never_computed_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_channel, "_READY_SECONDS", 0.5)
    with FakeServer(talk=listen) as server, RemoteEngine(server.url) as engine:
        error = Caller(engine).ended()
        assert type(error) is SessionFailed and "has not computed the prompt within 0.5 s" in str(
            error
        )
        assert engine.healthy


def test_an_input_frame_without_output_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_channel, "_CONFIRM_SECONDS", 1.5)

    async def talk(websocket: ServerConnection) -> None:
        await say(websocket, type="ready")
        await listen(websocket)

    with FakeServer(talk=talk) as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine)
        caller.session.push(np.concatenate([tone(0), tone(1)]))
        error = caller.ready().ended()
        assert type(error) is SessionLost and "has not returned a frame for 1.5 s" in str(error)


@pytest.mark.parametrize("busy_seconds", [2.0, 6.0])
def test_a_call_that_has_moved_waits_as_long_for_its_prompt_as_a_new_one(
    monkeypatch: pytest.MonkeyPatch, busy_seconds: float
) -> None:
    monkeypatch.setattr(native_channel, "_CONFIRM_SECONDS", 1.0)
    monkeypatch.setattr(native_channel, "_READY_SECONDS", 4.0)

    first, second = FakeServer(max_sessions=8), FakeServer()

    async def talk(websocket: ServerConnection) -> None:
        await asyncio.sleep(busy_seconds)  # with the prompts of other calls
        await second._converse(websocket)

    second._talk = talk
    for server in (first, second):
        server.features = ["history"]
    with second, first, RemoteEngine([first.url, second.url]) as engine:
        caller = Caller(engine).ready()  # at the first, which has more room
        caller.talk(0)
        first.stop()
        for index in range(1, 4):
            caller.session.push(tone(index))
        if busy_seconds < 4:
            assert [caller.next().index for _ in range(3)] == [1, 2, 3]
        else:
            error = caller.ended()
            assert isinstance(error, SessionLost)
            assert "has not computed the prompt within 4 s" in str(error)


def test_a_caller_who_pushes_no_audio_keeps_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_channel, "_CONFIRM_SECONDS", 0.5)
    monkeypatch.setattr(native_channel, "_STATS_SECONDS", 0.1)
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        caller = Caller(engine).ready()
        caller.talk(0)
        assert not caller.session.wait_ended(1.5)
        caller.talk(1)


def test_open_without_a_response_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_channel, "_OPEN_SECONDS", 0.5)

    async def script(websocket: ServerConnection) -> None:
        await greet(websocket)
        await websocket.wait_closed()

    with FakeServer(script) as server, RemoteEngine(server.url) as engine:
        error = Caller(engine).ended()
        assert isinstance(error, EngineUnreachable) and "within 0.5 s" in str(error)


def test_a_server_without_resumption_loses_the_session() -> None:
    with FakeServer() as server, RemoteEngine(server.url) as engine, log_lines() as lines:
        server.resume_seconds = 0
        caller = Caller(engine).ready()
        caller.talk(0)
        server.cut()
        error = caller.ended()
        assert isinstance(error, SessionLost) and "does not support resuming" in str(error)
        assert not resuming(lines, caller.session)
