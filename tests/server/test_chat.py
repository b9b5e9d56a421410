from __future__ import annotations

import asyncio
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import opuslib_next
import pytest
import sphn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex import Engine
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    ConfigError,
    EngineFailed,
    PersonaPlexError,
    PromptTooLong,
    SessionFailed,
    VoiceNotFound,
)
from pipecat_personaplex.server.chat import parse_query
from pipecat_personaplex.server.config import ServerConfig
from tests.golden_data import RESTAURANT, conversation
from tests.helpers.engines import FakeSession, says
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import FRAME, ChatClient
from tests.server.live import LiveServer

Sound = npt.NDArray[np.float32]
VOICES = ["NATF0", "NATF2", "NATM1"]


def tone(frames: int, hertz: float = 300) -> Sound:
    time = np.arange(frames * FRAME) / 24_000
    return (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32).reshape(-1, FRAME)


def pitch(sound: Sound) -> float:
    """The loudest frequency."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * 24_000 / len(sound))


# What a client asks for in its URL.


def test_everything_that_may_be_asked_for() -> None:
    query = {
        "voice_prompt": "NATM1.pt",
        "text_prompt": "You work for Jerusalem Shakshuka.",
        "seed": "7",
        "audio_temperature": "0.9",
        "text_temperature": "0.6",
        "audio_topk": "100",
        "text_topk": "20",
    }
    assert parse_query(query, VOICES) == (
        Persona("NATM1", "You work for Jerusalem Shakshuka."),
        SamplingParams(7, 0.9, 0.6, 100, 20),
    )


def test_nothing_asked_for() -> None:
    persona, sampling = parse_query({}, VOICES)
    assert persona == Persona("NATF0", "")
    assert sampling == SamplingParams(seed=sampling.seed)


@pytest.mark.parametrize("query", [{}, {"seed": "-1"}, {"seed": ""}])
def test_any_seed_is_another_each_time(query: dict[str, str]) -> None:
    assert parse_query(query, VOICES)[1].seed != parse_query(query, VOICES)[1].seed


@pytest.mark.parametrize("asked", ["NATF2", "NATF2.pt", "NATF2.safetensors", "NATF2.wav"])
def test_voices_by_their_file_names(asked: str) -> None:
    assert parse_query({"voice_prompt": asked}, VOICES)[0].voice == "NATF2"


def test_a_voice_whose_name_has_a_suffix() -> None:
    assert parse_query({"voice_prompt": "me.wav"}, ["me.wav"])[0].voice == "me.wav"


@pytest.mark.parametrize(
    "asked",
    ["NATX.pt", "../NATF2.pt", "/voices/NATF2.pt", "NATF2.exe", "NATF2.pt.pt", "NATF2\0", "."],
)
def test_voices_that_there_are_not(asked: str) -> None:
    with pytest.raises(VoiceNotFound):
        parse_query({"voice_prompt": asked}, VOICES)


def test_an_engine_without_voices() -> None:
    with pytest.raises(VoiceNotFound):
        parse_query({}, [])


@pytest.mark.parametrize(
    "query",
    [
        {"seed": "seven"},
        {"seed": "-2"},
        {"seed": "1.5"},
        {"seed": str(2**63)},
        {"seed": "9" * 5_000},
        {"audio_temperature": "hot"},
        {"audio_temperature": "-1"},
        {"audio_temperature": "nan"},
        {"text_temperature": "inf"},
        {"audio_topk": "0"},
        {"text_topk": "2.5"},
        {"text_topk": "1e9"},
    ],
)
def test_values_that_cannot_be(query: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        parse_query(query, VOICES)


# A conversation.


async def test_what_existing_clients_send(server: LiveServer, fake: ServedFakeEngine) -> None:
    # The web client's parameters, as of NVIDIA's release.
    query = {
        "worker_auth_id": "0",
        "email": "a@example.com",
        "text_temperature": "0.7",
        "text_topk": "25",
        "audio_temperature": "0.8",
        "audio_topk": "250",
        "pad_mult": "0",
        "text_seed": "12345",
        "audio_seed": "54321",
        "repetition_penalty_context": "64",
        "repetition_penalty": "1",
        "text_prompt": "You enjoy having a good conversation.",
        "voice_prompt": "NATM1.pt",
    }
    async with ChatClient.connect(server.ws_url, **query) as client:
        await client.handshake()
        for other in (b"\x00", b"\x02hello", b"\x03\x00", b"\x04{}", b"\x05oh", b"\x06"):
            await client.ws.send(other)
        await client.converse(tone(5))
    session = fake.sessions[0]
    assert session.persona == Persona("NATM1", "You enjoy having a good conversation.")
    assert len(client.sound) == 5 * FRAME


async def test_the_handshake_waits_for_the_prompt(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.ready = False
    async with ChatClient.connect(server.ws_url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.ws.recv()
        fake.sessions[0].make_ready()
        await client.handshake()


async def test_sound_and_words_come_back(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.on_open = says(" Hello", ",", " naïve")
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        await client.converse(tone(40, hertz=440))
    assert client.texts == [" Hello", ",", " naïve"]
    assert pitch(client.sound[5 * FRAME :]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("milliseconds", [2.5, 10, 20, 60, 80])
async def test_any_opus_frame_and_any_cut(
    server: LiveServer, fake: ServedFakeEngine, milliseconds: float
) -> None:
    stream = ogg(tone(20).reshape(-1), milliseconds)
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        for start in range(0, len(stream), 173):
            await client.ws.send(b"\x01" + stream[start : start + 173])
        await client.hear(19 * FRAME)
    assert pitch(client.sound[5 * FRAME :]) == pytest.approx(300, abs=2)


def ogg(sound: Sound, milliseconds: float) -> bytes:
    """An Ogg-Opus stream with packets of another length than sphn makes; one packet a page."""
    size = int(milliseconds * 24)
    encoder = opuslib_next.Encoder(24_000, 1, opuslib_next.APPLICATION_AUDIO)
    writer = sphn.OpusStreamWriter(24_000)
    headers = writer.append_pcm(np.zeros(FRAME, dtype=np.float32))
    stream = headers[: headers.index(b"OggS", headers.index(b"OpusTags"))]
    samples = (sound * 32767).astype(np.int16)
    for index in range(len(samples) // size):
        packet = encoder.encode(samples[index * size : (index + 1) * size].tobytes(), size)
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        stream += b"OggS\0\0" + (2 * size * (index + 1)).to_bytes(8, "little")
        stream += b"\x2a\0\0\0" + (index + 2).to_bytes(4, "little") + bytes(4)
        stream += bytes([len(lacing)]) + lacing + packet
    return stream


async def test_callers_do_not_mix(server: LiveServer, fake: ServedFakeEngine) -> None:
    async def call(hertz: int) -> None:
        async with ChatClient.connect(server.ws_url, text_prompt=str(hertz)) as client:
            await client.handshake()
            await client.converse(tone(40, hertz))
            assert pitch(client.sound[5 * FRAME :]) == pytest.approx(hertz, abs=2)

    await asyncio.gather(*(call(hertz) for hertz in (300, 440, 700, 1_000)))
    for session in fake.sessions:
        heard = np.concatenate(session.heard)[5 * FRAME :]
        assert pitch(heard) == pytest.approx(int(session.persona.text_prompt), abs=2)


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_conversation_is_the_engines_own(engine: Engine, seconds: int) -> None:
    frames = np.tile(conversation("restaurant").user_pcm, 10)[: int(seconds * 12.5) * FRAME]
    caller = frames.astype(np.float32).reshape(-1, FRAME)
    query = {
        "voice_prompt": f"{RESTAURANT.voice}.pt",
        "text_prompt": RESTAURANT.text_prompt,
        "seed": 11,
        "audio_temperature": 0.9,
        "text_temperature": 0.8,
        "audio_topk": 100,
        "text_topk": 40,
    }
    # What the server hears: Opus' rendering of it.
    writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
    heard = np.concatenate([reader.append_bytes(writer.append_pcm(frame)) for frame in caller])
    sampling = SamplingParams(11, 0.9, 0.8, 100, 40)
    expected = await asyncio.to_thread(engine.converse, RESTAURANT, heard, sampling)
    with LiveServer(engine) as server:
        async with ChatClient.connect(server.ws_url, **query) as client:
            await client.handshake()
            await client.converse(list(caller))
        server.check_clean()
    assert client.texts == [frame.text for frame in expected.frames if frame.text]
    writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
    sound = [reader.append_bytes(writer.append_pcm(frame.pcm)) for frame in expected.frames]
    np.testing.assert_array_equal(client.sound, np.concatenate(sound))


async def test_a_client_that_leaves_frees_its_slot(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.max_sessions = 1
    for _ in range(5):
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            await client.push(tone(1)[0])
            client.ws.transport.abort()
        await server.until(lambda: server.sessions == 0 and not fake.open_sessions)


# What is refused.


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


async def test_a_query_that_is_no_query(server: LiveServer) -> None:
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


@pytest.mark.parametrize("error", [SessionFailed("this one broke"), EngineFailed("all broke")])
async def test_a_session_that_fails(
    server: LiveServer, fake: ServedFakeEngine, error: PersonaPlexError
) -> None:
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        fake.sessions[0].fail(error)
        assert await client.ended() == (str(error), 1011)


async def test_a_message_of_more_than_64_kib(server: LiveServer) -> None:
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        await client.ws.send(bytes(65_537))
        await client.ws.wait_closed()
        assert client.ws.close_code == 1009


async def test_limits_of_time(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.2)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            await client.ws.send(b"\x06")
            error, code = await client.ended()
            assert "no audio" in error
            assert code == 1008
        server.check_clean()


async def test_messages_without_sound_are_not_audio(fake: ServedFakeEngine) -> None:
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


async def test_a_client_that_is_too_fast(fake: ServedFakeEngine) -> None:
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


async def test_a_session_that_a_defect_keeps_from_opening(
    server: LiveServer, fake: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret of the server's")

    monkeypatch.setattr(fake, "open_session", broken)
    error, code = await refusal(server)
    assert ("failed to serve" in error, "secret" in error, code) == (True, False, 1011)


async def test_a_client_that_does_not_read(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_unsent_frames=10)) as server:
        async with ChatClient.connect(server.ws_url) as client:
            await client.handshake()
            fake.step.clear()
            for frame in tone(30):
                await client.push(frame)
            await server.until(lambda: len(fake.sessions[0].heard) == 30)
            # The server's loop stands still meanwhile.
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
            drained = asyncio.run_coroutine_threadsafe(server.state.door.drain(), server.host.loop)
            error, code = await client.ended()
            assert (error, code) == ("the server has stopped", 1001)
        await asyncio.wrap_future(drained)
        assert (await refusal(server))[1] == 1001
        server.check_clean()
