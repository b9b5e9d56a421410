"""``/api/chat``: refusals, and how a session ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.errors import EngineFailed, PersonaPlexError, PromptTooLong, SessionFailed
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.engines import FakeSession
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import ChatClient, tone
from tests.server.live import LiveServer

# Refusals.


async def refusal(server: LiveServer, *messages: str | bytes, **query: object) -> tuple[str, int]:
    async with ChatClient.connect(server.ws_url, **query) as client:
        for message in messages:
            await client.ws.send(message)
        error, code = await client.ended()
        assert error
        assert "\n" not in error
        return error, code


@pytest.mark.parametrize(
    "query",
    [
        {"voice_prompt": "NATX.pt"},
        {"voice_prompt": "../../etc/passwd"},
        {"voice_prompt": "NATF2.pt\0.wav"},
        {"seed": "x"},
        {"text_topk": "-5"},
        {"audio_temperature": "nan"},
        {"text_prompt": "x" * 4_001},
    ],
)
async def test_bad_queries(
    server: LiveServer, fake: ServedFakeEngine, query: dict[str, str]
) -> None:
    assert (await refusal(server, **query))[1] == 1008
    assert fake.sessions == []


async def test_a_malformed_query(server: LiveServer) -> None:
    url = f"{server.ws_url}/api/chat?%ff=%00&seed=1&&&=&voice_prompt=NATF2&text_prompt=%ff%fe"
    async with connect(url, proxy=None) as ws:
        assert await ws.recv() == b"\0"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("hello", 1003),
        ("", 1003),
        (b"", 1008),
        (b"\x07", 1008),
        (b"\xff" * 100, 1008),
        (b"\x01not Ogg at all, as it happens", 1008),
    ],
)
async def test_bad_messages(server: LiveServer, message: str | bytes, code: int) -> None:
    assert (await refusal(server, message))[1] == code


async def test_a_full_engine(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.max_sessions = 1
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        error, code = await refusal(server)
        assert "all 1 sessions are taken" in error
        assert code == 1013


async def test_a_prompt_that_does_not_fit(server: LiveServer, fake: ServedFakeEngine) -> None:
    def refuse(session: FakeSession) -> None:
        fake.sessions.remove(session)
        raise PromptTooLong(3_100, 2_999)

    fake.on_open = refuse
    assert (await refusal(server))[1] == 1008


async def test_a_message_of_more_than_64_kib(server: LiveServer) -> None:
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        await client.ws.send(bytes(65_537))
        await client.ws.wait_closed()
        assert client.ws.close_code == 1009


async def test_a_defect_in_open_session_refuses_the_session(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of the server's")

    monkeypatch.setattr(fake, "open_session", broken)
    error, code = await refusal(server)
    assert ("failed to serve" in error, "secret" in error, code) == (True, False, 1011)


# Ends.


async def test_a_client_that_disconnects_frees_its_slot(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.max_sessions = 1
    for _ in range(5):
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            await client.push(tone(1)[0])
            client.ws.transport.abort()
        await server.until(lambda: server.sessions == 0 and not fake.open_sessions)


@pytest.mark.parametrize("error", [SessionFailed("this one broke"), EngineFailed("all broke")])
async def test_a_failed_session_reports_its_error(
    server: LiveServer, fake: ServedFakeEngine, error: PersonaPlexError
) -> None:
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        fake.sessions[0].fail(error)
        assert await client.ended() == (str(error), 1011)


async def test_a_session_without_audio_ends(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.2)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            await client.ws.send(b"\x06")
            error, code = await client.ended()
            assert "no audio" in error
            assert code == 1008
        server.check_clean()


async def test_audio_messages_without_samples_do_not_count_as_audio(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.4)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            with suppress(ConnectionClosed):
                for _ in range(100):
                    await client.ws.send(b"\x01")
                    await asyncio.sleep(0.1)
            assert server.sessions == 0
            error, code = await client.ended()
            assert ("no audio" in error, code) == (True, 1008)
        server.check_clean()


async def test_audio_that_comes_too_fast_ends_the_session(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_speed=1, resume_seconds=0)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            await client.converse(tone(40))
            with suppress(ConnectionClosed):
                for frame in tone(150):
                    await client.push(frame)
            error, code = await client.ended()
            assert ("real time" in error, code) == (True, 1008)
        server.check_clean()


async def test_a_client_that_does_not_read_loses_its_session(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_unsent_frames=10)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            fake.step.clear()
            for frame in tone(30):
                await client.push(frame)
            await server.until(lambda: len(fake.sessions[0].heard) == 30)
            # Block the server's loop meanwhile, so that the frames pile up.
            server.call(lambda: answer_all(server, fake.sessions[0]))
            error, code = await client.ended()
            assert "does not read" in error
            assert code == 1008
        server.check_clean()


def answer_all(server: LiveServer, session: FakeSession) -> None:
    session._engine.step.set()
    server.wait_until(lambda: session.stats().queued_frames == 0)


async def test_the_server_stops(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=0.3)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            drained = asyncio.run_coroutine_threadsafe(
                server.state.admission.drain(), server.runner.loop
            )
            error, code = await client.ended()
            assert (error, code) == ("the server has stopped", 1001)
        await asyncio.wrap_future(drained)
        assert (await refusal(server))[1] == 1001
        server.check_clean()
