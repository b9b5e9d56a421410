"""``/api/chat``: the query of its URL, and audio and text in both directions."""

from __future__ import annotations

import asyncio

import numpy as np
import opuslib_next
import pytest
import sphn

from pipecat_personaplex import Engine
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import ConfigError, VoiceNotFound
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.moshi_endpoint import parse_query
from tests.golden_data import RESTAURANT, conversation
from tests.helpers.engines import says
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import FRAME, ChatClient, Sound, tone
from tests.server.live import LiveServer

VOICES = ["NATF0", "NATF2", "NATM1"]


def pitch(sound: Sound) -> float:
    """The loudest frequency."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * 24_000 / len(sound))


# The query of the URL.


def test_all_parameters() -> None:
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


def test_no_parameters() -> None:
    persona, sampling = parse_query({}, VOICES)
    assert persona == Persona("NATF0", "")
    assert sampling == SamplingParams(seed=sampling.seed)


@pytest.mark.parametrize("query", [{}, {"seed": "-1"}, {"seed": ""}])
def test_without_a_seed_each_session_has_a_random_one(query: dict[str, str]) -> None:
    assert parse_query(query, VOICES)[1].seed != parse_query(query, VOICES)[1].seed


@pytest.mark.parametrize("requested", ["NATF2", "NATF2.pt", "NATF2.safetensors", "NATF2.wav"])
def test_voices_by_file_name(requested: str) -> None:
    assert parse_query({"voice_prompt": requested}, VOICES)[0].voice == "NATF2"


def test_a_voice_whose_name_has_a_suffix() -> None:
    assert parse_query({"voice_prompt": "me.wav"}, ["me.wav"])[0].voice == "me.wav"


@pytest.mark.parametrize(
    "requested",
    ["NATX.pt", "../NATF2.pt", "/voices/NATF2.pt", "NATF2.exe", "NATF2.pt.pt", "NATF2\0", "."],
)
def test_unknown_voices(requested: str) -> None:
    with pytest.raises(VoiceNotFound):
        parse_query({"voice_prompt": requested}, VOICES)


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
def test_invalid_values(query: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        parse_query(query, VOICES)


# A conversation.


async def test_parameters_and_messages_of_existing_clients(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
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


async def test_audio_and_text_are_sent_back(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.on_open = says(" Hello", ",", " naïve")
    async with ChatClient.connect(server.ws_url) as client:
        await client.handshake()
        await client.converse(tone(40, hertz=440))
    assert client.texts == [" Hello", ",", " naïve"]
    assert pitch(client.sound[5 * FRAME :]) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("milliseconds", [2.5, 10, 20, 60, 80])
async def test_opus_frames_of_any_length_in_messages_of_any_length(
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
    """An Ogg-Opus stream with packets of a given length, one packet a page."""
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


@pytest.mark.parametrize("seconds", [5, pytest.param(20, marks=pytest.mark.slow)])
async def test_a_conversation_equals_that_of_the_engine(engine: Engine, seconds: int) -> None:
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
    # What the server receives: the audio after Opus.
    writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
    heard = np.concatenate([reader.append_bytes(writer.append_pcm(frame)) for frame in caller])
    sampling = SamplingParams(11, 0.9, 0.8, 100, 40)
    expected = await asyncio.to_thread(engine.converse, RESTAURANT, heard, sampling)
    with LiveServer(engine, ServerConfig(max_speed=0)) as server:
        async with ChatClient.connect(server.ws_url, **query) as client:
            await client.handshake()
            await client.converse(list(caller))
        server.check_clean()
    assert client.texts == [frame.text for frame in expected.frames if frame.text]
    writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
    sound = [reader.append_bytes(writer.append_pcm(frame.pcm)) for frame in expected.frames]
    np.testing.assert_array_equal(client.sound, np.concatenate(sound))
