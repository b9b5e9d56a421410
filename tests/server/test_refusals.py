"""Log lines of refusals: each has its client and reason, and a flood is summarised."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import InvalidStatus

from pipecat_personaplex.errors import AccessDenied, BadMessage, EngineFull, LimitReached
from pipecat_personaplex.server import refusals
from pipecat_personaplex.server.auth import new_key
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.refusals import RefusalLog, describe_error
from tests.helpers.logs import LogRecords
from tests.helpers.servers import RunningServer, ServedFakeEngine
from tests.server.clients import ChatClient, SessionClient
from tests.server.live import LiveServer, refusal


def test_an_error_is_described_by_code_and_text() -> None:
    assert describe_error(EngineFull(8)).startswith("engine_full: all 8 sessions are taken")


def test_a_client_cannot_write_log_lines() -> None:
    forged = describe_error(BadMessage("x\nINFO session opened\x1b[31m" + "y" * 10_000))
    assert "\n" not in forged and "\x1b" not in forged
    assert len(forged) < 300


async def test_a_flood_of_refusals_is_summarised(
    log: LogRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_WINDOW_SECONDS", 0.05)
    refused = RefusalLog()
    for number in range(1_000):
        refused.record(AccessDenied("no key"), client=f"192.0.2.{number % 256}")
        if number % 500 == 0:
            refused.record(LimitReached("too many"), client="bot")
    assert len(log.containing("access_denied: no key")) == 3
    assert len(log.containing("limit_reached: too many")) == 2  # another code has its own window
    # Timers of one loop fire in the order of their times: this one after those of the windows.
    windows_closed = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, windows_closed.set)
    await windows_closed.wait()
    assert [message for *_, message in log.records[5:]] == [
        "refused 997 more with access_denied, not logged one by one"
    ]
    refused.record(AccessDenied("no key"), client="192.0.2.1")
    assert log.records[-1] == (
        *("", "192.0.2.1", "WARNING"),
        "refused 192.0.2.1: access_denied: no key",
    )


def denied(server: RunningServer, path: str = "/v1/session", **headers: str) -> None:
    with (
        pytest.raises(InvalidStatus),
        server.connect(path, additional_headers=headers),
    ):
        pass


def test_refused_connections_are_logged_once_with_address_or_key(log: LogRecords) -> None:
    key, line = new_key("bot", max_sessions=1)
    bearer = {"Authorization": f"Bearer {key}"}
    config = ServerConfig(max_connections=2)
    with RunningServer(ServedFakeEngine(), config, keys=[line]) as server:
        denied(server)
        denied(server, Authorization="Bearer not-the-key")
        denied(server, Origin="https://evil.example", **bearer)
        assert server.get("/v1/voices").status_code == 401
        with server.connect(additional_headers=bearer), server.connect(additional_headers=bearer):
            denied(server, **bearer)
    messages = [message for _, _, _, message in log.containing("refused ")]
    assert [message.split(";")[0] for message in messages] == [
        "refused 127.0.0.1: access_denied: this server needs a key: send the header Authorization: "
        "Bearer KEY",
        "refused 127.0.0.1: access_denied: the server does not know this key",
        "refused 127.0.0.1: access_denied: pages of https://evil.example may not connect to this "
        "server unless --allow-origin names them",
        "refused 127.0.0.1: limit_reached: the server has reached its limit of 2 connections",
    ] + ["refused 1 more with access_denied, not logged one by one"] * (len(messages) - 4)
    assert key not in "".join(messages) and "not-the-key" not in "".join(messages)


async def test_refused_sessions_are_logged_once_with_client_and_reason(
    fake: ServedFakeEngine, log: LogRecords
) -> None:
    fake.max_sessions = 1
    key, line = new_key("bot", max_sessions=1)
    bearer = {"Authorization": f"Bearer {key}"}
    with LiveServer(fake, keys=[line]) as server:
        async with (
            SessionClient.connect(server.ws_url, additional_headers=bearer) as client,
            SessionClient.connect(server.ws_url, additional_headers=bearer) as other,
        ):
            await client.open(text_prompt="my secret prompt")
            await other.say("open", voice="NATF2")
            await other.ended()
            await client.say("close")
            await client.ended()
    assert log.containing("refused ") == [
        (
            "",
            "bot",
            "WARNING",
            "refused bot: limit_reached: this key has reached its limit of 1 sessions; close one",
        )
    ]
    assert "secret" not in str(log.records)


async def test_refusals_of_both_endpoints_name_the_address(
    server: LiveServer, fake: ServedFakeEngine, log: LogRecords
) -> None:
    fake.max_sessions = 0
    await refusal(server, '{"type": "open", "voice": "NATF2"}')
    async with ChatClient.connect(server.ws_url) as client:
        await client.ended()
    refused = log.containing("refused ")
    assert [(session, client, level) for session, client, level, _ in refused] == [
        ("", "127.0.0.1", "WARNING")
    ] * 2
    assert all("engine_full" in message for _, _, _, message in refused)


async def test_a_refused_message_of_a_running_session_has_the_sessions_id(
    server: LiveServer, fake: ServedFakeEngine, log: LogRecords
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("update", sampling={"top_k_text": 0})
        assert (await client.message())["fatal"] is False
        await client.say("close")
        await client.ended()
    (refused,) = log.containing("refused ")
    assert refused[0] == fake.sessions[0].id
