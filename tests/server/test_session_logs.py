"""Log lines of sessions: each has the session's public id, which the client gets too."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from pipecat_personaplex.errors import SessionFailed
from pipecat_personaplex.server.auth import new_key
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.logs import LogRecords
from tests.helpers.servers import RunningServer, ServedFakeEngine, ServeProcess, eventually
from tests.server.clients import SILENCE, ChatClient, SessionClient, cut
from tests.server.live import LiveServer

CALLS = 8


async def calls(url: str, opened: asyncio.Barrier, number: int) -> str:
    """Make one of eight concurrent calls; the fifth sends an invalid frame. Return its id."""
    async with SessionClient.connect(url) as client:
        await client.open(text_prompt=f"the prompt of caller {number}")
        assert (await client.message())["type"] == "ready"
        await opened.wait()
        for _ in range(number + 1):
            await client.push(SILENCE)
            await client.frame()
        if number == 4:
            await client.push(b"\0" * 3839)
            error, code = await client.ended()
            assert (error["code"], code) == ("invalid_audio", 1008)
        else:
            await client.say("close")
            assert await client.ended() == ({"type": "closed"}, 1000)
        return client.id


def test_eight_calls_can_be_told_apart_and_the_failed_one_has_its_reason() -> None:
    async def run(url: str) -> list[str]:
        opened = asyncio.Barrier(CALLS)
        return await asyncio.gather(*(calls(url, opened, number) for number in range(CALLS)))

    with ServeProcess("--max-sessions", CALLS) as server:
        ids = asyncio.run(run(server.ws_url))
        eventually(lambda: server.log.count(" ended after ") == CALLS)
        log = server.log
    print(log)
    assert len(set(ids)) == CALLS and all(re.fullmatch("[0-9a-f]{8}", each) for each in ids)
    lines = log.splitlines()
    for number, session in enumerate(ids):
        own = [message_of(line, session) for line in lines if session in line]
        opened, *_, ended = own
        assert re.fullmatch(r"session of 127\.0\.0\.1 opened at /v1/session; \d now", opened)
        if number == 4:
            assert re.fullmatch(
                r"session of 127\.0\.0\.1 ended after [\d.]+ s: invalid_audio: .*3840.*", ended
            )
        else:
            assert re.fullmatch(
                r"session of 127\.0\.0\.1 ended after [\d.]+ s: closed by the client", ended
            )
    assert log.count("invalid_audio") == 1
    assert "prompt of caller" not in log


def message_of(line: str, session: str) -> str:
    """Return the message of a log line; its session column must be the session's id."""
    _, _, _, column, message = re.split(r"\s+", line, maxsplit=4)
    assert column == session
    return message


async def test_the_client_gets_the_public_id(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.connect(server.ws_url) as client:
        secret = await client.open()
        assert client.id == fake.sessions[0].id
        assert client.id not in secret
        await client.say("close")
        await client.ended()


async def test_a_failed_session_is_logged_with_its_error(
    server: LiveServer, fake: ServedFakeEngine, log: LogRecords
) -> None:
    async with (
        SessionClient.opened(server.ws_url) as client,
        SessionClient.opened(server.ws_url) as other,
    ):
        fake.sessions[0].fail(SessionFailed("the model's state is no longer finite"))
        await client.ended()
        await other.say("close")
        await other.ended()
    (failed,) = log.containing("no longer finite")
    assert failed[:3] == (client.id, "127.0.0.1", "WARNING")
    assert "session_failed: the model's state is no longer finite" in failed[3]
    assert log.of_session(other.id)[-1].endswith("closed by the client")


async def test_a_defect_is_logged_with_the_session(
    server: LiveServer, log: LogRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError

    async with SessionClient.opened(server.ws_url) as client:
        monkeypatch.setattr("pipecat_personaplex.server.sessions.ResumableSession.pack", broken)
        await client.push()
        await client.ended()
    assert [record[:3] for record in log.containing("the server failed to serve this session")] == [
        (client.id, "127.0.0.1", "ERROR"),  # the defect
        (client.id, "127.0.0.1", "WARNING"),  # the end of the session
    ]


async def test_disconnection_resume_and_takeover_are_logged(
    fake: ServedFakeEngine, log: LogRecords
) -> None:
    key, line = new_key("bot")
    options: Any = {"additional_headers": {"Authorization": f"Bearer {key}"}}
    with LiveServer(fake, ServerConfig(resume_seconds=100), keys=[line]) as server:
        async with SessionClient.connect(server.ws_url, **options) as client:
            secret = await client.open()
            await client.message()
            await client.push()
            await client.frame()
            await cut(client)
        await server.until(lambda: server.state.admission.connections == 0)
        async with (
            SessionClient.connect(server.ws_url, **options) as again,
            SessionClient.connect(server.ws_url, **options) as third,
        ):
            await again.resume(secret, 0)
            await again.frame()
            await third.resume(secret, 1)
            await cut(third)
        await server.until(lambda: server.state.admission.connections == 0)
        server.advance(101)
        server.check_clean()
    messages = log.of_session(client.id)
    assert messages[:-1] == [
        "session of bot opened at /v1/session; 1 now",
        "disconnected; the session waits 100 s for its client",
        "session resumed; frames sent again: 1",
        "a new connection takes over the session",
        "session resumed; frames sent again: 0",
        "disconnected; the session waits 100 s for its client",
    ]
    assert re.fullmatch(
        r"session of bot ended after 10\d\.\d s: the client did not come back", messages[-1]
    )
    assert secret not in str(log.records) and key not in str(log.records)


async def test_a_chat_is_logged_with_its_session(
    server: LiveServer, fake: ServedFakeEngine, log: LogRecords
) -> None:
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
    await server.until(lambda: len(log.of_session(fake.sessions[0].id)) == 2)
    opened, ended = log.of_session(fake.sessions[0].id)
    assert opened == "session of 127.0.0.1 opened at /api/chat; 1 now"
    assert ended.endswith("the client disconnected")


async def test_draining_is_logged(fake: ServedFakeEngine, log: LogRecords) -> None:
    with RunningServer(fake, ServerConfig(drain_seconds=0.1)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            server.stop()
            await client.ended()
        assert server.wait_stopped()
    assert log.containing("draining for 0.1 s; sessions now: 1")
    assert log.containing("the drain time is over; sessions that are ended now: 1")
    assert log.of_session(client.id)[-1].endswith("engine_draining: the server has stopped")
