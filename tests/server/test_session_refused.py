"""Refused messages: their error code, and whether the session goes on."""

from __future__ import annotations

import json

import pytest

from pipecat_personaplex.errors import PromptTooLong, SpeechTooLong
from pipecat_personaplex.server.auth import new_key
from tests.helpers.engines import FakeSession
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient
from tests.server.live import LiveServer, close_all, refusal

# Errors that end the session or refuse it.


@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "null",
        '{"type": "oepn"}',
        '{"type": "open", "voice": "NATF2", "temprature": 1}',
        '{"type": "open", "voice": {"name": "NATF2"}}',
        '{"type": "stats"}',
        '{"type": "close"}',
        '{"type": "resume", "session": "x", "next_frame": -1}',
        "[" * 30_000,
    ],
)
async def test_bad_first_messages(server: LiveServer, message: str) -> None:
    error, code = await refusal(server, message)
    assert (error["code"], code) == ("bad_message", 1008)


async def test_audio_before_open(server: LiveServer) -> None:
    error, code = await refusal(server, b"\x01" + bytes(4 + 3840))
    assert (error["code"], code) == ("bad_message", 1003)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("{}", "bad_message"),
        ('{"type": "open", "voice": "NATF2"}', "bad_message"),
        ('{"type": "resume", "session": "x", "next_frame": 0}', "bad_message"),
        ('{"type": "say", "text": 7}', "bad_message"),
        (b"", "bad_message"),
        (b"\x02" + bytes(3844), "bad_message"),
        (b"\x01\0\0\0\x01" + bytes(3840), "bad_message"),
        (b"\x01\xff\xff\xff\xff" + bytes(3840), "bad_message"),
        (b"\x01" + bytes(4 + 3839), "invalid_audio"),
        (b"\x01" + bytes(4), "invalid_audio"),
    ],
)
async def test_bad_messages_end_the_session(
    server: LiveServer, fake: ServedFakeEngine, message: str | bytes, expected: str
) -> None:
    error, code = await refusal(server, message, after_open=True)
    assert (error["code"], code) == (expected, 1008)
    assert fake.open_sessions == []


async def test_a_frame_sent_twice_is_pushed_once(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    frame = b"\x01" + bytes(4 + 3840)
    error, code = await refusal(server, frame, frame, after_open=True)
    assert (error["code"], code) == ("bad_message", 1008)
    assert len(fake.sessions[0].heard) == 1


async def test_a_damaged_opus_packet(server: LiveServer) -> None:
    async with SessionClient.opened(server.ws_url, audio="opus") as client:
        await client.push(b"\xff\xff\xff")
        error, code = await client.ended()
    assert (error["code"], code) == ("invalid_audio", 1008)


async def test_invalid_sampling(server: LiveServer) -> None:
    text = '{"type": "open", "voice": "NATF2", "sampling": {"temperature_text": 11}}'
    error, code = await refusal(server, text)
    assert (error["code"], code) == ("config_error", 1008)


@pytest.mark.parametrize("voice", ["NATX", "", "../NATF2", "/etc/passwd", "NATF2.pt", "NATF2\0"])
async def test_voices_are_looked_up_by_name_only(server: LiveServer, voice: str) -> None:
    error, code = await refusal(server, json.dumps({"type": "open", "voice": voice}))
    assert (error["code"], code) == ("voice_not_found", 1008)
    assert error["details"] == {"name": voice, "known": ["NATF2", "NATM1"]}


async def test_a_prompt_that_does_not_fit_the_model(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    def refuse(session: FakeSession) -> None:
        fake.sessions.remove(session)
        raise PromptTooLong(3_100, 2_999)

    fake.on_open = refuse
    error, code = await refusal(server, '{"type": "open", "voice": "NATF2"}')
    assert (error["code"], code) == ("prompt_too_long", 1008)
    assert error["details"] == {"frames": 3_100, "limit": 2_999}


async def test_a_prompt_longer_than_the_server_takes(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    text = json.dumps({"type": "open", "voice": "NATF2", "text_prompt": "x" * 4_001})
    error, code = await refusal(server, text)
    assert (error["code"], code) == ("limit_reached", 1008)
    assert fake.sessions == []


async def test_more_sessions_than_the_key_allows(fake: ServedFakeEngine) -> None:
    key, line = new_key("bot", max_sessions=1)
    headers = {"Authorization": f"Bearer {key}"}
    with LiveServer(fake, keys=[line]) as server:
        async with (
            SessionClient.connect(server.ws_url, additional_headers=headers) as client,
            SessionClient.connect(server.ws_url, additional_headers=headers) as more,
        ):
            await client.open()
            await more.say("open", voice="NATF2")
            error, code = await more.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
            await client.say("close")
            assert (await client.ended())[1] == 1000
        async with SessionClient.connect(server.ws_url, additional_headers=headers) as client:
            await client.open()
            await client.say("close")
        server.check_clean()


async def test_a_full_engine(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.max_sessions = 1
    async with SessionClient.opened(server.ws_url) as client:
        error, code = await refusal(server, '{"type": "open", "voice": "NATF2"}')
        assert (error["code"], code) == ("engine_full", 1013)
        assert error["details"] == {"max_sessions": 1}
        await client.say("close")
        await client.ended()


async def test_a_message_of_more_than_64_kib(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.ws.send(bytes(65_537))
        await client.ws.wait_closed()
        assert client.ws.close_code == 1009
    await close_all(server, fake)


# Errors that do not change the session.


async def test_errors_that_are_not_fatal(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(self: FakeSession, text: str, **options: object) -> None:
        raise SpeechTooLong(1_600, 1_500)

    async with SessionClient.opened(server.ws_url) as client:
        await client.say("update", sampling={"top_k_text": 0})
        refused = await client.message()
        assert (refused["code"], refused["fatal"]) == ("config_error", False)
        monkeypatch.setattr(FakeSession, "say", too_long)
        await client.say("say", text="All of it.")
        refused = await client.message()
        assert (refused["code"], refused["fatal"]) == ("speech_too_long", False)
        assert refused["details"] == {"frames": 1_600, "limit": 1_500}
        await client.push()
        assert (await client.frame()).sequence == 0
        await client.say("close")


async def test_the_length_of_words_is_checked_before_they_are_tokenised(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("say", text="a " * 2_001)
        refused = await client.message()
        assert (refused["code"], refused["fatal"]) == ("limit_reached", False)
        await client.say("say", text="a " * 2_000)
        await client.push()
        assert (await client.frame()).text == " a"
        assert [len(text) for text in fake.sessions[0].said] == [4_000]
        await client.say("close")
