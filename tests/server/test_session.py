from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex import Engine
from pipecat_personaplex.audio import pcm16_to_float
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    EngineFailed,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
    SpeechTooLong,
)
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.keys import new_key
from pipecat_personaplex.server.table import HostedSession
from tests.golden_data import FRIEND, RESTAURANT, conversation
from tests.helpers.engines import FakeSession, says
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import FRAME, SessionClient, loud
from tests.server.live import LiveServer

# The same tokens as without a server.


@pytest.mark.parametrize(
    ("persona", "sampling"),
    [
        (RESTAURANT, SamplingParams.greedy()),
        (FRIEND, SamplingParams(seed=11, temperature_audio=1.3, top_k_text=40)),
    ],
)
async def test_tokens_equal_those_of_the_engine_itself(
    engine: Engine, persona: Persona, sampling: SamplingParams
) -> None:
    caller = (conversation("restaurant").user_pcm[: 60 * FRAME] * 32768).astype(np.int16)
    expected = await asyncio.to_thread(engine.converse, persona, pcm16_to_float(caller), sampling)
    with LiveServer(engine) as server:
        async with SessionClient.opened(
            server.ws_url,
            voice=persona.voice,
            text_prompt=persona.text_prompt,
            sampling=vars(sampling),
        ) as client:
            frames = await client.converse(caller)
            await client.say("close")
            assert await client.ended() == ({"type": "closed"}, 1000)
        server.check_clean()
    assert len(frames) == len(expected.frames) == 60
    for sequence, (ours, theirs) in enumerate(zip(frames, expected.frames, strict=True)):
        assert (ours.sequence, ours.text_token, ours.text) == (
            sequence,
            theirs.text_token,
            theirs.text,
        )
        np.testing.assert_array_equal(ours.agent_codes, theirs.agent_codes)
        np.testing.assert_array_equal(ours.user_codes, theirs.user_codes)
        heard = np.frombuffer(ours.audio, "<i2")
        np.testing.assert_allclose(pcm16_to_float(heard), theirs.pcm, atol=1 / 32768)


# A conversation.


async def test_hello_tells_what_there_is(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url), SessionClient.connect(server.ws_url) as client:
        assert client.hello == {
            "type": "hello",
            "version": 1,
            "model": "tiny",
            "voices": ["NATF2", "NATM1"],
            "sessions": 1,
            "max_sessions": 4,
            "draining": False,
        }
    await close_all(server, fake)


async def close_all(server: LiveServer, fake: ServedFakeEngine) -> None:
    """End what tests leave to be resumed."""
    for session in fake.open_sessions:
        session.fail(SessionFailed("enough"))
    await server.until(lambda: server.sessions == 0)


async def test_a_browsers_subprotocol_is_chosen(server: LiveServer) -> None:
    async with connect(
        f"{server.ws_url}/v1/session", subprotocols=["personaplex.v1", "bearer.x"], proxy=None
    ) as ws:
        assert ws.subprotocol == "personaplex.v1"
        await ws.recv()


async def test_persona_and_sampling_reach_the_engine(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.opened(
        server.ws_url, voice="NATM1", text_prompt="Be brief.", sampling={"seed": 7, "top_k_text": 3}
    ) as client:
        assert fake.sessions[0].persona == Persona("NATM1", "Be brief.")
        assert fake.sessions[0].sampling == SamplingParams(seed=7, top_k_text=3)
        await client.say("close")
        assert await client.ended() == ({"type": "closed"}, 1000)
    assert fake.open_sessions == []


async def test_every_frame_is_answered_in_order(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.on_open = says(" Hello", " there")
    async with SessionClient.opened(server.ws_url) as client:
        for level in (100, -200, 300):
            await client.push(loud(level))
        frames = [await client.frame() for _ in range(3)]
        assert [frame.sequence for frame in frames] == [0, 1, 2]
        assert [frame.text for frame in frames] == [" Hello", " there", ""]
        for frame, level in zip(frames, (100, -200, 300), strict=True):
            np.testing.assert_array_equal(np.frombuffer(frame.audio, "<i2"), loud(level))
        await client.say("close")


async def test_frames_before_ready_are_answered_first(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.ready = False
    fake.step.clear()
    async with SessionClient.connect(server.ws_url) as client:
        await client.open()
        await client.push(loud(5))
        await server.until(lambda: len(fake.sessions[0].heard) == 1)
        fake.do(fake.sessions[0].make_ready)
        fake.sessions[0].make_ready()
        fake.step.set()
        assert await client.message() == {"type": "ready"}
        frame = next(f for f in [await client.ws.recv() for _ in range(2)] if isinstance(f, bytes))
        assert frame[1:5] == bytes(4)
        await client.say("close")


async def test_opus_both_ways(server: LiveServer, fake: ServedFakeEngine) -> None:
    import opuslib_next

    encoder = opuslib_next.Encoder(24_000, 1, opuslib_next.APPLICATION_AUDIO)
    decoder = opuslib_next.Decoder(24_000, 1)
    time = np.arange(20 * FRAME) / 24_000
    tone = (8_000 * np.sin(2 * np.pi * 300 * time)).astype(np.int16)
    heard = []
    async with SessionClient.opened(server.ws_url, audio="opus") as client:
        for frame in tone.reshape(-1, FRAME):
            await client.push(encoder.encode(frame.tobytes(), FRAME))
            answer = await client.frame()
            assert len(answer.audio) < 1_000
            heard.append(np.frombuffer(decoder.decode(answer.audio, FRAME), np.int16))
        await client.say("close")
    # The engine repeats what it hears: two codecs later, 6.5 ms of delay each.
    echo = np.concatenate(heard)[5 * FRAME + 312 :].astype(float)
    assert np.corrcoef(echo, tone[5 * FRAME : -312])[0, 1] > 0.98


async def test_say_update_and_stats(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("say", text="Good morning!")
        await client.say("update", sampling={"temperature_text": 0})
        await client.push()
        assert (await client.frame()).text == " Good"
        assert fake.sessions[0].sampling == SamplingParams(temperature_text=0)
        await client.say("stats")
        assert await client.message() == {
            "type": "stats",
            "frames": 1,
            "late_frames": 0,
            "dropped_frames": 0,
            "queued_frames": 0,
        }
        await client.say("close")


async def test_callers_do_not_mix(server: LiveServer, fake: ServedFakeEngine) -> None:
    async def call(number: int) -> None:
        async with SessionClient.opened(server.ws_url, text_prompt=str(number)) as client:
            for step in range(50):
                await client.push(loud(1_000 * number + step))
                frame = await client.frame()
                level = 1_000 * number + step
                np.testing.assert_array_equal(np.frombuffer(frame.audio, "<i2"), loud(level))
            await client.say("close")
            assert await client.ended() == ({"type": "closed"}, 1000)

    await asyncio.gather(*(call(number) for number in range(4)))
    for session in fake.sessions:
        assert {round(float(pcm[0]) * 32768) // 1_000 for pcm in session.heard} == {
            int(session.persona.text_prompt)
        }


async def test_close_frees_the_slot_at_once(fake: ServedFakeEngine) -> None:
    fake.max_sessions = 1
    with LiveServer(fake) as server:
        for _ in range(20):
            async with SessionClient.opened(server.ws_url) as client:
                await client.say("close")
                assert await client.ended() == ({"type": "closed"}, 1000)
        server.check_clean()


# What is refused, and with which code.


def bad_message(message: str) -> bool:
    return bool(message) and "\n" not in message and "Traceback" not in message


async def refusal(
    server: LiveServer, *messages: str | bytes, after_open: bool = False
) -> tuple[dict[str, Any], int]:
    async with SessionClient.connect(server.ws_url) as client:
        if after_open:
            await client.open()
            assert await client.message() == {"type": "ready"}
        for message in messages:
            await client.ws.send(message)
        error, code = await client.ended()
        assert error.get("type") == "error", error
        assert error["fatal"] is True
        assert bad_message(error["message"])
        return error, code


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


async def test_a_frame_twice_is_heard_once(server: LiveServer, fake: ServedFakeEngine) -> None:
    frame = b"\x01" + bytes(4 + 3840)
    error, code = await refusal(server, frame, frame, after_open=True)
    assert (error["code"], code) == ("bad_message", 1008)
    assert len(fake.sessions[0].heard) == 1


async def test_a_damaged_opus_packet(server: LiveServer) -> None:
    async with SessionClient.opened(server.ws_url, audio="opus") as client:
        await client.push(b"\xff\xff\xff")
        error, code = await client.ended()
    assert (error["code"], code) == ("invalid_audio", 1008)


async def test_sampling_that_cannot_be(server: LiveServer) -> None:
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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SessionFailed("the model's state is no longer finite"), "session_failed"),
        (EngineFailed("the device is lost"), "engine_failed"),
    ],
)
async def test_a_session_that_fails(
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


async def test_a_defect_of_ours_is_one_sessions_failure(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: HostedSession, frame: object) -> bytes:
        raise ZeroDivisionError("a secret of the server's")

    async with SessionClient.opened(server.ws_url) as client:
        monkeypatch.setattr(HostedSession, "pack", broken)
        await client.push()
        error, code = await client.ended()
        assert (error["code"], code) == ("session_failed", 1011)
        assert "secret" not in error["message"]
    assert fake.open_sessions == []


async def test_a_session_that_a_defect_keeps_from_opening(
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
        monkeypatch.setattr(HostedSession, "__init__", broken)
        await client.say("open", voice="NATF2")
        error, code = await client.ended()
    assert (error["code"], code) == ("session_failed", 1011)
    assert (fake.open_sessions, server.sessions) == ([], 0)


# Errors that leave the session as it was.


async def test_errors_that_are_not_fatal(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(self: FakeSession, text: str) -> None:
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


async def test_words_are_counted_before_they_are_spelt(
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


# Time.


async def test_a_client_that_is_too_fast(fake: ServedFakeEngine) -> None:
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


async def test_a_connection_that_says_nothing(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(hello_seconds=0.1)) as server:
        error, code = await refusal(server)
        assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_a_session_without_audio(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.3)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(5):
                await client.push()
                await client.frame()
                await asyncio.sleep(0.1)
            await client.say("stats")
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_waiting_for_the_prompt_is_not_idle(fake: ServedFakeEngine) -> None:
    fake.ready = False
    with LiveServer(fake, ServerConfig(idle_seconds=0.1)) as server:
        async with SessionClient.connect(server.ws_url) as client:
            await client.open()
            await asyncio.sleep(0.4)
            fake.sessions[0].make_ready()
            assert await client.message() == {"type": "ready"}
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_a_session_that_lasts_too_long(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_session_seconds=0.3)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            error, code = await client.ended()
            assert (error["code"], code) == ("limit_reached", 1008)
        server.check_clean()


async def test_a_client_that_does_not_read(fake: ServedFakeEngine) -> None:
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
            drained = asyncio.run_coroutine_threadsafe(server.state.door.drain(), server.host.loop)
            told = await client.message()
            assert told["type"] == "draining"
            assert 0 < told["seconds"] <= 0.5
            error, code = await refusal(server, '{"type": "open", "voice": "NATF2"}')
            assert (error["code"], code) == ("engine_draining", 1001)
            await client.push()
            await client.frame()
            error, code = await client.ended()
            assert (error["code"], code) == ("engine_draining", 1001)
        await asyncio.wrap_future(drained)
        server.check_clean()
