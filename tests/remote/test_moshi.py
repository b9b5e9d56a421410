"""``RemoteEngine`` against a fake server of NVIDIA's protocol."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import (
    ConfigError,
    EngineStopped,
    EngineUnreachable,
    LimitReached,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.remote import RemoteEngine, moshi
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from tests.remote.fakes import FakeServer
from tests.remote.helpers import FRIEND, WAIT, Caller, tone, until

sphn = pytest.importorskip("sphn")

HANDSHAKE, AUDIO, TEXT = b"\x00", b"\x01", b"\x02"
SAMPLING = SamplingParams(seed=5, temperature_audio=0.5, top_k_text=9)


async def nvidia(websocket: ServerConnection, swallowed: int = 1) -> None:
    """Echo the audio delayed by ``swallowed`` frames, each frame followed by text."""
    decoder, encoder = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
    received = np.zeros(0, dtype=np.float32)
    spoken = 0
    await websocket.send(HANDSHAKE)
    async for message in websocket:
        assert isinstance(message, bytes) and message[0] == 1
        received = np.concatenate([received, decoder.append_bytes(message[1:])])
        while len(received) >= FRAME_SAMPLES:
            frame, received = np.split(received, [FRAME_SAMPLES])
            if swallowed:
                swallowed -= 1
                continue
            await websocket.send(AUDIO + encoder.append_pcm(frame))
            await websocket.send(TEXT + f" {spoken}".encode())
            spoken += 1


def chat(script: Callable[[ServerConnection], Awaitable[None]] = nvidia) -> FakeServer:
    return FakeServer(script)


def engine_at(server: FakeServer, start_seconds: float = 10) -> RemoteEngine:
    return RemoteEngine(f"{server.url}/api/chat", start_seconds=start_seconds)


def sines(frames: int) -> np.ndarray:
    time = np.arange(frames * FRAME_SAMPLES, dtype=np.float32) / 24_000
    return (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)


def test_a_conversation() -> None:
    with chat() as server, engine_at(server) as engine:
        caller = Caller(engine, FRIEND, SAMPLING).ready()
        caller.session.push(sines(12))
        until(lambda: len(caller.frames) == 11)
        assert [frame.index for frame in caller.frames] == list(range(11))
        received = np.concatenate([frame.pcm for frame in caller.frames[1:]])
        assert np.sqrt(np.mean(received**2)) == pytest.approx(0.212, rel=0.1)
        # Text follows its audio, so it is delivered with the next frame.
        assert [frame.text for frame in caller.frames[:4]] == ["", " 0", " 1", " 2"]
        for frame in caller.frames:
            assert frame.text_token == -1
            assert frame.agent_codes.tolist() == frame.user_codes.tolist() == [-1] * 8
        caller.session.close()
        assert caller.ended() is None
        query = parse_qs(urlsplit(server.requests[-1].path).query)
        assert query == {
            "voice_prompt": ["NATF2.pt"],
            "text_prompt": [FRIEND.text_prompt],
            "seed": ["5"],
            "audio_temperature": ["0.5"],
            "text_temperature": ["0.7"],
            "audio_topk": ["250"],
            "text_topk": ["9"],
        }


def test_any_voice_is_accepted_and_file_names_are_unchanged() -> None:
    with chat() as server, engine_at(server) as engine:
        assert len(engine.voices) == 18 and "VARM4" in engine.voices
        Caller(engine, Persona("mine.wav")).ready()
        query = parse_qs(urlsplit(server.requests[-1].path).query)
        assert query["voice_prompt"] == ["mine.wav"]


def test_say_and_update_are_refused() -> None:
    with chat() as server, engine_at(server) as engine:
        caller = Caller(engine)
        with pytest.raises(ConfigError, match="neither say nor update"):
            caller.session.say("Hi")
        with pytest.raises(ConfigError, match="neither say nor update"):
            caller.session.update(SAMPLING)
        caller.ready()


def test_frames_swallowed_at_the_start_count_as_dropped() -> None:
    async def slow(websocket: ServerConnection) -> None:
        await nvidia(websocket, swallowed=3)

    with chat(slow) as server, engine_at(server) as engine:
        caller = Caller(engine).ready()
        for _ in range(2):
            caller.session.push(tone(0))
        until(lambda: caller.session.stats().dropped_frames == 2)
        caller.session.push(tone(0))
        until(lambda: caller.session.stats().dropped_frames == 3)
        caller.talk(1, 2)
        assert caller.session.stats().dropped_frames == 3


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "at least one byte"),
        ("text", "must be binary, not text"),
        (b"\x2a", "not 42"),
        (AUDIO + b"RIFF" * 99, "does not decode"),
        (b"\x05no such voice", "no such voice"),
    ],
)
def test_protocol_violations_end_the_session(message: str | bytes, reason: str) -> None:
    async def say(websocket: ServerConnection) -> None:
        for each in (b"\x03\x00", b"\x04{}", b"\x06", HANDSHAKE, message):
            await websocket.send(each)
        await websocket.wait_closed()

    with chat(say) as server, engine_at(server) as engine:
        error = Caller(engine).ended()
        assert type(error) is SessionFailed and reason in str(error)


def test_audio_before_the_handshake_ends_the_session() -> None:
    async def early(websocket: ServerConnection) -> None:
        encoder = sphn.OpusStreamWriter(24_000)
        await websocket.send(AUDIO + encoder.append_pcm(sines(1)))
        await websocket.send(HANDSHAKE)
        await websocket.wait_closed()

    with chat(early) as server, engine_at(server) as engine:
        error = Caller(engine).ended()
        assert type(error) is SessionFailed and "before the handshake" in str(error)


def test_text_without_audio_is_bounded() -> None:
    async def flood(websocket: ServerConnection) -> None:
        await websocket.send(HANDSHAKE)
        for _ in range(5):
            await websocket.send(TEXT + b"x" * (16 << 10))
        await websocket.wait_closed()

    with chat(flood) as server, engine_at(server) as engine:
        error = Caller(engine).ended()
        assert type(error) is SessionFailed and "64 KiB of text came without audio" in str(error)


def test_frames_swallowed_later_count_as_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moshi, "_DROP_SECONDS", 0.5)

    async def forgetful(websocket: ServerConnection) -> None:
        decoder, encoder = sphn.OpusStreamReader(24_000), sphn.OpusStreamWriter(24_000)
        replied = False
        await websocket.send(HANDSHAKE)
        async for message in websocket:
            if len(decoder.append_bytes(message[1:])) and not replied:
                await websocket.send(AUDIO + encoder.append_pcm(sines(1)))
                replied = True

    with chat(forgetful) as server, engine_at(server) as engine:
        caller = Caller(engine).ready()
        caller.session.push(sines(3))
        until(lambda: len(caller.frames) == 1)
        until(lambda: caller.session.stats().dropped_frames == 2)


def test_a_late_output_frame_takes_its_drop_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moshi, "_STARTUP_DROP_SECONDS", 0.1)

    expired = threading.Event()

    async def late(websocket: ServerConnection) -> None:
        encoder = sphn.OpusStreamWriter(24_000)
        await websocket.send(HANDSHAKE)
        await websocket.recv()
        assert await asyncio.to_thread(expired.wait, WAIT)
        await websocket.send(AUDIO + encoder.append_pcm(sines(1)))
        await websocket.wait_closed()

    with chat(late) as server, engine_at(server) as engine:
        caller = Caller(engine).ready()
        caller.session.push(sines(1))
        until(lambda: caller.session.stats().dropped_frames == 1)
        expired.set()
        until(lambda: caller.frames)
        until(lambda: caller.session.stats().dropped_frames == 0)


def test_a_silent_server_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moshi, "_SILENT_SECONDS", 1.0)
    monkeypatch.setattr(moshi, "_STARTUP_DROP_SECONDS", 0.1)

    async def mute(websocket: ServerConnection) -> None:
        await websocket.send(HANDSHAKE)
        await websocket.wait_closed()

    with chat(mute) as server, engine_at(server) as engine:
        caller = Caller(engine).ready()
        caller.session.push(sines(20))
        until(lambda: caller.session.stats().dropped_frames == 20)
        caller.session.push(sines(20))
        error = caller.ended()
        assert type(error) is SessionFailed and "no audio for 1 s" in str(error)


@pytest.mark.parametrize("status", [400, 413, 414, 431])
def test_a_bad_request_does_not_make_the_server_unreachable(status: int) -> None:
    with chat() as server, engine_at(server) as engine:
        server.status = status
        error = Caller(engine).ended()
        assert type(error) is SessionFailed and str(status) in str(error)
        server.status = None
        assert engine.healthy and engine.stats().servers[0].reachable
        Caller(engine).ready()


def test_a_prompt_too_long_for_a_url_is_refused() -> None:
    with chat() as server, engine_at(server) as engine:
        error = Caller(engine, Persona("NATF2", "\N{CAT FACE}" * 600)).ended()
        assert isinstance(error, LimitReached) and "into the URL" in str(error)
        assert engine.healthy and not server.requests


def test_say_works_after_failover_to_our_own_server() -> None:
    with chat() as nvidias, FakeServer(max_sessions=1) as ours:
        with RemoteEngine([f"{nvidias.url}/api/chat", ours.url]) as engine:
            until(lambda: all(server.reachable for server in engine.stats().servers))
            nvidias.status = 400
            engine._servers[0].max_sessions = 8  # the lowest load: it is tried first
            caller = Caller(engine).ready()
            caller.session.say("Hi")
            assert nvidias.requests and len(ours.open) == 1


def test_a_broken_connection_ends_the_session() -> None:
    with chat() as server, engine_at(server) as engine:
        caller = Caller(engine).ready()
        server.cut()
        error = caller.ended()
        assert isinstance(error, SessionLost) and "cannot resume" in str(error)
        caller = Caller(engine).ready()
        engine.stop()
        assert isinstance(caller.ended(), EngineStopped)


def test_a_call_does_not_move_without_its_past() -> None:
    with chat() as first, chat() as second:
        with RemoteEngine([f"{first.url}/api/chat", f"{second.url}/api/chat"]) as engine:
            caller = Caller(engine).ready()
            used, other = (first, second) if first.requests else (second, first)
            used.cut()
            assert isinstance(caller.ended(), SessionLost)
            assert not other.requests


def test_refused_connections_are_reported() -> None:
    with chat() as server, engine_at(server) as engine:
        server.status = 500
        error = Caller(engine).ended()
        assert isinstance(error, EngineUnreachable) and "500" in str(error)
    with pytest.raises(EngineUnreachable, match="refused"):
        engine_at(server, start_seconds=0.5).start()


def test_a_delegation_is_refused_where_the_service_is_made() -> None:
    with chat() as server, engine_at(server) as engine:
        assert engine.features == frozenset()
        with pytest.raises(ConfigError, match=r"supports hold, prompt, say"):
            PersonaPlexLLMService(engine, delegation=PersonaPlexLLMService.Delegation("clerk"))
