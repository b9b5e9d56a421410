"""What cannot be resumed, how long a session waits for its client, and how it ends meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipecat_personaplex.errors import EngineFailed, SessionFailed
from pipecat_personaplex.server.auth import new_key
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient, cut, finish, loud
from tests.server.live import LiveServer

# What cannot be resumed.


async def lost(server: LiveServer, secret: str, next_frame: int = 0) -> tuple[str, int]:
    async with SessionClient.connect(server.ws_url) as client:
        await client.say("resume", session=secret, next_frame=next_frame)
        error, code = await client.ended()
        return error.get("code", ""), code


@pytest.mark.parametrize("secret", ["", "x", "../6vTq", "\0", "A" * 43, "A" * 60_000])
async def test_a_session_that_never_was(server: LiveServer, secret: str) -> None:
    assert await lost(server, secret) == ("session_lost", 1008)


@pytest.mark.parametrize("next_frame", [2, 1_000, 2**32, 10**30])
async def test_a_frame_that_never_was(server: LiveServer, next_frame: int) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push()
        await client.frame()
        assert await lost(server, client.secret, next_frame) == ("bad_message", 1008)
        # Its owner has not noticed.
        await client.push()
        await client.frame()
        await finish(client)


async def test_frames_that_are_forgotten(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0.8, max_unsent_frames=5)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(20):
                await client.push()
                await client.frame()
            assert await lost(server, client.secret, 4) == ("session_lost", 1008)
            assert (await client.ended())[1] == 4001
            assert fake.open_sessions == []
        server.check_clean()
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(20):
                await client.push()
                await client.frame()
            await cut(client)
        async with SessionClient.connect(server.ws_url) as again:
            await again.resume(client.secret, 5)
            assert [(await again.frame()).sequence for _ in range(15)] == list(range(5, 20))
            await finish(again)
        server.check_clean()


async def test_a_session_that_was_closed(server: LiveServer) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await finish(client)
    assert await lost(server, client.secret) == ("session_lost", 1008)


async def test_another_key_does_not_resume(fake: ServedFakeEngine) -> None:
    made = [new_key("owner"), new_key("thief")]
    owner, thief = ({"Authorization": f"Bearer {key}"} for key, _ in made)
    with LiveServer(fake, keys=[line for _, line in made]) as server:
        async with SessionClient.connect(server.ws_url, additional_headers=owner) as client:
            await client.open()
            async with SessionClient.connect(server.ws_url, additional_headers=thief) as other:
                assert (await other.resume(client.secret, 0))["code"] == "session_lost"
            await cut(client)
        async with SessionClient.connect(server.ws_url, additional_headers=owner) as again:
            assert (await again.resume(client.secret, 0))["type"] == "resumed"
            await finish(again)
        server.check_clean()


async def test_no_resume_where_the_server_allows_none(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        server.check_clean()
        assert await lost(server, client.secret) == ("session_lost", 1008)


# A goodbye.


async def test_a_goodbye_ends_the_session_at_once(server: LiveServer) -> None:
    """What a browser does whose page is left: nobody will come back for the slot."""
    for code in (1000, 1001):
        async with SessionClient.opened(server.ws_url) as client:
            await client.ws.close(code)
        await server.until(lambda: server.sessions == 0)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 0))["code"] == "session_lost"


async def test_a_goodbye_without_a_code_is_one(fake: ServedFakeEngine) -> None:
    """A browser's ``ws.close()``: a close frame that is empty."""
    with LiveServer(fake, ServerConfig(resume_seconds=300)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            client.ws.transport.write(b"\x88\x80" + bytes(4))
            await server.until(lambda: server.sessions == 0)
        server.check_clean()


# How long it waits.


async def test_a_session_that_waited_too_long(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0.3)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await server.until(lambda: server.state.door.connections == 0)
        assert (len(fake.open_sessions), server.sessions) == (1, 1)  # it keeps its slot
        server.check_clean()
        assert await lost(server, client.secret) == ("session_lost", 1008)


async def test_each_cut_starts_the_wait_anew(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=1.0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        for _ in range(4):
            await asyncio.sleep(0.5)
            async with SessionClient.connect(server.ws_url) as again:
                assert (await again.resume(client.secret, 0))["type"] == "resumed"
                await cut(again)
        server.check_clean()


async def test_coming_and_going_is_not_audio(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.5, resume_seconds=1.0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        error: dict[str, Any] = {}
        # Idle for 0.5 s, and away for 1 s of it at most.
        for _ in range(100):
            async with SessionClient.connect(server.ws_url) as again:
                if (await again.resume(client.secret, 0))["type"] == "error":
                    break
                if not fake.open_sessions:
                    error, _ = await again.ended()
                    break
                await cut(again)
            await asyncio.sleep(0.2)
        assert not fake.open_sessions
        assert error.get("code") in (None, "limit_reached")
        server.check_clean()


async def test_who_is_away_is_not_idle(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.5, resume_seconds=20.0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await client.push()
            await client.frame()
            await cut(client)
        await asyncio.sleep(1.5)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 1))["type"] == "resumed"
            await again.push()
            assert (await again.frame()).sequence == 1
            await finish(again)
        server.check_clean()


# The session ends while its client is away.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SessionFailed("this one broke"), "session_failed"),
        (EngineFailed("the device is lost"), "engine_failed"),
    ],
)
async def test_a_session_that_failed_meanwhile_says_so(
    server: LiveServer, fake: ServedFakeEngine, error: SessionFailed | EngineFailed, code: str
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push(loud(1))
        first = await client.packet()
        await cut(client)
    fake.sessions[0].fail(error)
    await server.until(lambda: server.sessions == 0)  # slot and ticket are free at once
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["type"] == "resumed"
        assert await again.packet() == first
        message, close = await again.ended()
    assert (message["code"], message["message"], close) == (code, str(error), 1011)


async def test_draining_is_told_on_return(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=5)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await server.until(lambda: server.state.door.connections == 0)
        server.call(server.state.door.start_draining)
        async with SessionClient.connect(server.ws_url) as again:
            assert again.hello["draining"] is True
            await again.resume(client.secret, 0)
            assert (await again.message())["type"] == "draining"
            await finish(again)
        server.check_clean()


async def test_the_deadline_ends_who_is_away(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=0.2)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(server.state.door.drain(), server.host.loop)
        )
        server.check_clean()
        async with SessionClient.connect(server.ws_url) as again:
            await again.say("resume", session=client.secret, next_frame=0)
            error, code = await again.ended()
        assert (error["code"], code) == ("engine_draining", 1001)
