"""Refused resumes, the time that a session waits for its client, and its end in that time."""

from __future__ import annotations

import asyncio

import pytest

from pipecat_personaplex.errors import EngineFailed, SessionFailed
from pipecat_personaplex.server.auth import new_key
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient, cut, finish, loud
from tests.server.live import LiveServer

# Refused resumes.


async def lost(server: LiveServer, secret: str, next_frame: int = 0) -> tuple[str, int]:
    async with SessionClient.connect(server.ws_url) as client:
        await client.say("resume", session=secret, next_frame=next_frame)
        error, code = await client.ended()
        return error.get("code", ""), code


@pytest.mark.parametrize("secret", ["", "x", "../6vTq", "\0", "A" * 43, "A" * 60_000])
async def test_an_unknown_session_is_not_resumed(server: LiveServer, secret: str) -> None:
    assert await lost(server, secret) == ("session_lost", 1008)


@pytest.mark.parametrize("next_frame", [2, 1_000, 2**32, 10**30])
async def test_a_frame_that_was_not_sent_cannot_be_resumed_from(
    server: LiveServer, next_frame: int
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push()
        await client.frame()
        assert await lost(server, client.secret, next_frame) == ("bad_message", 1008)
        # The session itself goes on.
        await client.push()
        await client.frame()
        await finish(client)


async def test_frames_that_are_not_stored_any_more(fake: ServedFakeEngine) -> None:
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


async def test_a_closed_session_is_not_resumed(server: LiveServer) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await finish(client)
    assert await lost(server, client.secret) == ("session_lost", 1008)


async def test_another_key_cannot_resume_a_session(fake: ServedFakeEngine) -> None:
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


async def test_no_resume_with_zero_resume_seconds(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        server.check_clean()
        assert await lost(server, client.secret) == ("session_lost", 1008)


# The client closes the connection on purpose.


async def test_a_normal_close_ends_the_session_at_once(server: LiveServer) -> None:
    """A browser sends these codes when its page is left; the client will not resume."""
    for code in (1000, 1001):
        async with SessionClient.opened(server.ws_url) as client:
            await client.ws.close(code)
        await server.until(lambda: server.sessions == 0)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 0))["code"] == "session_lost"


async def test_a_close_without_a_code_ends_the_session_at_once(fake: ServedFakeEngine) -> None:
    """A browser's ``ws.close()`` sends an empty close frame."""
    with LiveServer(fake, ServerConfig(resume_seconds=300)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            client.ws.transport.write(b"\x88\x80" + bytes(4))
            await server.until(lambda: server.sessions == 0)
        server.check_clean()


# How long a session waits for its client.


async def disconnect(server: LiveServer, client: SessionClient) -> None:
    """Break the connection and wait until the server has noticed."""
    await cut(client)
    await server.until(lambda: server.state.admission.connections == 0)


async def test_a_session_holds_its_slot_for_resume_seconds(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=100)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await disconnect(server, client)
        server.advance(80)
        assert (len(fake.open_sessions), server.sessions) == (1, 1)
        server.advance(21)
        server.check_clean()
        assert await lost(server, client.secret) == ("session_lost", 1008)


async def test_each_disconnection_starts_the_wait_anew(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=900, resume_seconds=100)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await disconnect(server, client)
        for _ in range(4):
            server.advance(60)
            async with SessionClient.connect(server.ws_url) as again:
                assert (await again.resume(client.secret, 0))["type"] == "resumed"
                await disconnect(server, again)
        server.advance(101)
        server.check_clean()


async def test_reconnecting_without_audio_does_not_keep_a_session(fake: ServedFakeEngine) -> None:
    """Idle for 40 s, and at most 80 s of disconnections extend that: 120 s in total."""
    with LiveServer(fake, ServerConfig(idle_seconds=40, resume_seconds=80)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await disconnect(server, client)
        for _ in range(3):  # At 32, 64 and 96 s.
            server.advance(32)
            async with SessionClient.connect(server.ws_url) as again:
                assert (await again.resume(client.secret, 0))["type"] == "resumed"
                await again.say("stats")
                assert (await again.message())["type"] == "stats"
                await disconnect(server, again)
        assert len(fake.open_sessions) == 1
        server.advance(32)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 0))["type"] == "resumed"
            error, code = await again.ended()
        assert (error["code"], code) == ("limit_reached", 1008)
        assert error["message"] == "no audio came for 40 s"
        assert not fake.open_sessions
        server.advance(81)  # The session waited once more, for a client that missed the error.
        server.check_clean()


async def test_a_disconnected_client_is_not_idle(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=10, resume_seconds=200)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await client.push()
            await client.frame()
            await disconnect(server, client)
        server.advance(100)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 1))["type"] == "resumed"
            await again.push()
            assert (await again.frame()).sequence == 1
            await finish(again)
        server.check_clean()


# The session ends while its client is disconnected.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SessionFailed("this one broke"), "session_failed"),
        (EngineFailed("the device is lost"), "engine_failed"),
    ],
)
async def test_the_error_of_a_disconnected_session_is_sent_on_resume(
    server: LiveServer, fake: ServedFakeEngine, error: SessionFailed | EngineFailed, code: str
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push(loud(1))
        first = await client.packet()
        await cut(client)
    fake.sessions[0].fail(error)
    await server.until(lambda: server.sessions == 0)  # Slot and permit are free at once.
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["type"] == "resumed"
        assert await again.packet() == first
        message, close = await again.ended()
    assert (message["code"], message["message"], close) == (code, str(error), 1011)


async def test_draining_is_sent_on_resume(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=5)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await disconnect(server, client)
        server.call(server.state.admission.start_draining)
        async with SessionClient.connect(server.ws_url) as again:
            assert again.hello["draining"] is True
            await again.resume(client.secret, 0)
            assert (await again.message())["type"] == "draining"
            await finish(again)
        server.check_clean()


async def test_the_drain_deadline_ends_disconnected_sessions(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=0.2)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(server.state.admission.drain(), server.runner.loop)
        )
        server.check_clean()
        async with SessionClient.connect(server.ws_url) as again:
            await again.say("resume", session=client.secret, next_frame=0)
            error, code = await again.ended()
        assert (error["code"], code) == ("engine_draining", 1001)
