"""A session: the tokens are those of the engine, and frames arrive in order."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from websockets.asyncio.client import connect

from pipecat_personaplex import Engine
from pipecat_personaplex.audio import pcm16_to_float
from pipecat_personaplex.config import Persona, SamplingParams
from tests.golden_data import FRIEND, RESTAURANT, conversation
from tests.helpers.engines import says
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import FRAME, SessionClient, loud
from tests.server.live import LiveServer, close_all

# Tokens.


@pytest.mark.parametrize(
    ("persona", "sampling"),
    [
        (RESTAURANT, SamplingParams.greedy()),
        (FRIEND, SamplingParams(seed=11, temperature_audio=1.3, top_k_text=40)),
    ],
)
async def test_tokens_equal_those_of_the_engine(
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


async def test_hello_has_model_voices_and_slots(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url), SessionClient.connect(server.ws_url) as client:
        assert client.hello == {
            "type": "hello",
            "version": 1,
            "model": "tiny",
            "voices": ["NATF2", "NATM1"],
            "sessions": 1,
            "max_sessions": 4,
            "draining": False,
            "features": ["history", "hold", "prompt", "sampling", "say"],
        }
    await close_all(server, fake)


async def test_a_browsers_subprotocol_is_selected(server: LiveServer) -> None:
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


async def test_every_frame_has_a_response_in_order(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
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


async def test_frames_before_ready_are_computed_first(
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


async def test_sessions_do_not_mix(server: LiveServer, fake: ServedFakeEngine) -> None:
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
