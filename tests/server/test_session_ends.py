"""How a session ends: it is closed, it fails, a time limit is reached, or the server stops."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.errors import EngineFailed, PersonaPlexError, SessionFailed
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.sessions import ResumableSession
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient
from tests.server.live import LiveServer, refusal


async def test_close_frees_the_slot_at_once(fake: ServedFakeEngine) -> None:
    fake.max_sessions = 1
    with LiveServer(fake) as server:
        for _ in range(20):
            async with SessionClient.opened(server.ws_url) as client:
                await client.say("close")
                assert await client.ended() == ({"type": "closed"}, 1000)
        server.check_clean()


# The session fails.


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SessionFailed("the model's state is no longer finite"), "session_failed"),
        (EngineFailed("the device is lost"), "engine_failed"),
    ],
)
async def test_a_failed_session_reports_its_error(
    server: LiveServer, fake: ServedFakeEngine, error: PersonaPlexError, expected: str
) -> None:
    async with (
        SessionClient.opened(server.ws_url) as client,
        SessionClient.opened(server.ws_url) as two,
    ):
        fake.sessions[0].fail(error)
        message, code = await client.ended()
        assert (message["code"], message["message"], code) == (expected, str(error), 1011)
        await two.push()
        await two.frame()
        await two.say("close")


async def test_a_defect_of_the_server_fails_one_session(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ResumableSession, frame: object) -> bytes:
        raise ZeroDivisionError("a secret of the server's")

    async with SessionClient.opened(server.ws_url) as client:
        monkeypatch.setattr(ResumableSession, "pack", broken)
        await client.push()
        error, code = await client.ended()
        assert (error["code"], code) == ("session_failed", 1011)
        assert "secret" not in error["message"]
    assert fake.open_sessions == []


async def test_a_defect_in_open_session_refuses_the_session(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("a secret of the server's")

    async with SessionClient.connect(server.ws_url) as client:
        monkeypatch.setattr(fake, "open_session", broken)
        await client.say("open", voice="NATF2")
        error, code = await client.ended()
    assert (error["code"], code) == ("session_failed", 1011)
    assert "secret" not in error["message"]


async def test_a_defect_after_the_engine_has_opened_frees_the_slot(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with SessionClient.connect(server.ws_url) as client:
        monkeypatch.setattr(ResumableSession, "__init__", broken)
        await client.say("open", voice="NATF2")
        error, code = await client.ended()
    assert (error["code"], code) == ("session_failed", 1011)
    assert (fake.open_sessions, server.sessions) == ([], 0)


# Time limits.


async def test_audio_that_comes_too_fast_ends_the_session(fake: ServedFakeEngine) -> None:
    config = ServerConfig(max_speed=2, resume_seconds=0)
    with LiveServer(fake, config) as server:
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(50):
                await client.push()
                await client.frame()
            with suppress(ConnectionClosed):
                for _ in range(300):
                    await client.push()
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
            assert "2 times real time" in error["message"]
        server.check_clean()


async def test_a_connection_without_a_first_message_is_closed(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(hello_seconds=0.1)) as server:
        error, code = await refusal(server)
        assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_a_session_without_audio_ends(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=40)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(5):
                await client.push()
                await client.frame()
                server.advance(30)
            await client.say("stats")  # is not audio
            assert (await client.message())["type"] == "stats"
            server.advance(30)
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_waiting_for_the_prompt_is_not_idle(fake: ServedFakeEngine) -> None:
    fake.ready = False
    with LiveServer(fake, ServerConfig(idle_seconds=40)) as server:
        async with SessionClient.connect(server.ws_url) as client:
            await client.open()
            server.advance(100)
            await client.say("stats")
            assert (await client.message())["type"] == "stats"
            fake.sessions[0].make_ready()
            assert await client.message() == {"type": "ready"}
            server.advance(41)
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_the_idle_time_counts_from_when_the_prompt_is_computed(
    fake: ServedFakeEngine,
) -> None:
    fake.ready = False
    with LiveServer(fake, ServerConfig(idle_seconds=40)) as server:
        async with SessionClient.connect(server.ws_url) as client:
            await client.open()
            server.advance(30)  # the timer has not looked yet
            fake.sessions[0].make_ready()
            assert await client.message() == {"type": "ready"}
            server.advance(30)
            await client.push()
            await client.frame()
            server.advance(41)
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_a_session_ends_after_max_session_seconds(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_session_seconds=0.3)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_a_client_that_does_not_read_loses_its_session(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_unsent_frames=20)) as server:
        # Little is buffered on the way, so that the server notices soon.
        async with SessionClient.connect(server.ws_url, max_queue=1) as client:
            await client.open()
            client.ws.transport.pause_reading()
            sent = 0
            while fake.open_sessions and sent < 5_000:
                await client.push()
                sent += 1
                await asyncio.sleep(0.002)  # faster would be a flood, which is cut off
            assert not fake.open_sessions
            client.ws.transport.resume_reading()
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


# The server stops.


async def test_draining(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=0.5)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            drained = asyncio.run_coroutine_threadsafe(
                server.state.admission.drain(), server.runner.loop
            )
            draining = await client.message()
            assert draining["type"] == "draining"
            assert 0 < draining["seconds"] <= 0.5
            error, code = await refusal(server, '{"type": "open", "voice": "NATF2"}')
            assert (error["code"], code) == ("engine_draining", 1001)
            await client.push()
            await client.frame()
            error, code = await client.ended()
            assert (error["code"], code) == ("engine_draining", 1001)
        await asyncio.wrap_future(drained)
        server.check_clean()
