"""Resuming a session after its connection broke: the conversation continues unchanged."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex import Engine
from pipecat_personaplex.audio import pcm16_to_float
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.protocol.session_frames import ServerFrame
from pipecat_personaplex.server.config import ServerConfig
from tests.golden_data import FRIEND, conversation
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import FRAME, SessionClient, cut, finish, frames_of, loud
from tests.server.live import LiveServer


def levels(fake: ServedFakeEngine) -> list[int]:
    """Audio levels that the first session received, frame by frame."""
    return [round(float(pcm[0]) * 32768) for pcm in fake.sessions[0].heard]


@pytest.mark.parametrize("audio", ["pcm16", "opus"])
async def test_frames_are_sent_again_byte_for_byte(server: LiveServer, audio: str) -> None:
    packets = []
    encode = opus_encoder() if audio == "opus" else lambda frame: frame
    async with SessionClient.opened(server.ws_url, audio=audio) as client:
        for level in range(10):
            await client.push(encode(loud(1_000 * level)))
            packets.append(await client.packet())
        await cut(client)
    async with SessionClient.connect(server.ws_url) as again:
        resumed = await again.resume(client.secret, 4)
        assert resumed == {
            "type": "resumed",
            "next_frame": 10,
            "ready": True,
            "instructions": 0,
        }
        assert [await again.packet() for _ in range(6)] == packets[4:]
        await again.push(encode(loud(500)))
        assert (await again.frame()).sequence == 10
        await finish(again)


def opus_encoder() -> Any:
    import opuslib_next

    encoder = opuslib_next.Encoder(24_000, 1, opuslib_next.APPLICATION_AUDIO)
    return lambda frame: encoder.encode(frame.tobytes(), FRAME)


@pytest.mark.parametrize("seed", range(5))
async def test_many_broken_connections_do_not_change_the_conversation(
    server: LiveServer, fake: ServedFakeEngine, seed: int
) -> None:
    chance, total = random.Random(seed), 60
    got: list[ServerFrame] = []
    async with SessionClient.opened(server.ws_url) as client:
        secret = client.secret
        sent = chance.randint(1, 8)
        for level in range(sent):
            await client.push(loud(level))
        for _ in range(chance.randint(0, sent)):
            got.append(await client.frame())
        await cut(client)
    while len(got) < total:
        async with SessionClient.connect(server.ws_url) as client:
            resumed = await client.resume(secret, len(got))
            assert resumed["type"] == "resumed", resumed
            pushed = min(client.sequence + chance.randint(0, 8), total)
            while client.sequence < pushed:
                await client.push(loud(client.sequence))
            # Not all of them: a frame may be on its way when the connection breaks.
            for _ in range(chance.randint(0, pushed - len(got))):
                got.append(await client.frame())
            if len(got) < total:
                await cut(client)
            else:
                await finish(client)
    assert levels(fake) == list(range(total))
    assert [frame.sequence for frame in got] == list(range(total))
    for frame in got:
        np.testing.assert_array_equal(np.frombuffer(frame.audio, "<i2"), loud(frame.sequence))


async def test_a_broken_connection_does_not_change_the_tokens(engine: Engine) -> None:
    sampling = SamplingParams(seed=3)
    caller = (conversation("friend").user_pcm[: 30 * FRAME] * 32768).astype(np.int16)
    expected = await asyncio.to_thread(engine.converse, FRIEND, pcm16_to_float(caller), sampling)
    frames, got = frames_of(caller), list[ServerFrame]()
    with LiveServer(engine) as server:
        async with SessionClient.opened(
            server.ws_url,
            voice=FRIEND.voice,
            text_prompt=FRIEND.text_prompt,
            sampling=vars(sampling),
        ) as client:
            for frame in frames[:12]:
                await client.push(frame)
            got = [await client.frame() for _ in range(10)]
            await cut(client)
        async with SessionClient.connect(server.ws_url) as again:
            await again.resume(client.secret, 10)
            for frame in frames[again.sequence :]:
                await again.push(frame)
            got += [await again.frame() for _ in range(20)]
            await finish(again)
        server.check_clean()
    assert [frame.text_token for frame in got] == [frame.text_token for frame in expected.frames]
    for ours, theirs in zip(got, expected.frames, strict=True):
        np.testing.assert_array_equal(ours.agent_codes, theirs.agent_codes)


async def test_frames_that_were_computed_meanwhile_are_sent_on_resume(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.step.clear()
    async with SessionClient.opened(server.ws_url) as client:
        for level in range(3):
            await client.push(loud(level))
        await server.until(lambda: len(fake.sessions[0].heard) == 3)
        await cut(client)
    fake.step.set()
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["next_frame"] == 3
        assert [(await again.frame()).sequence for _ in range(3)] == [0, 1, 2]
        await finish(again)


async def test_frames_sent_twice_are_refused(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        for level in range(3):
            await client.push(loud(level))
            await client.frame()
        await cut(client)
    async with SessionClient.connect(server.ws_url) as again:
        await again.resume(client.secret, 3)
        again.sequence = 1
        await again.push(loud(1))
        error, code = await again.ended()
    assert (error["code"], code) == ("bad_message", 1008)
    assert levels(fake) == [0, 1, 2]


# Readiness.


async def test_a_session_becomes_ready_while_its_client_is_disconnected(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.ready = False
    async with SessionClient.connect(server.ws_url) as client:
        await client.open()
        await cut(client)
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["ready"] is False
        fake.sessions[0].make_ready()
        assert await again.message() == {"type": "ready"}
        await cut(again)
    async with SessionClient.connect(server.ws_url) as last:
        assert (await last.resume(client.secret, 0))["ready"] is True
        await last.push()
        await last.frame()  # not a second ready
        await finish(last)


async def test_ready_is_sent_once(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.ready = False
    async with SessionClient.connect(server.ws_url) as client:
        await client.open()
        await cut(client)
    fake.sessions[0].make_ready()
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["ready"] is True
        await again.push()
        await again.frame()
        await finish(again)


# Two connections.


async def test_a_resume_takes_over_from_a_connection_that_seems_alive(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with (
        SessionClient.opened(server.ws_url) as old,
        SessionClient.connect(server.ws_url) as new,
    ):
        await old.push(loud(1))
        await old.frame()
        assert (await new.resume(old.secret, 1))["next_frame"] == 1
        assert (await old.ended())[1] == 4001
        await new.push(loud(2))
        assert (await new.frame()).sequence == 1
        assert server.sessions == 1
        await finish(new)
    assert levels(fake) == [1, 2]


async def test_of_several_resumes_one_remains(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push(loud(0))
        await client.frame()
        await cut(client)

    all_resumed = asyncio.Barrier(8)

    async def resume() -> int:
        async with SessionClient.connect(server.ws_url) as again:
            try:
                try:
                    resumed = await again.resume(client.secret, 1)
                finally:  # Some are closed in favour of another before the server responds.
                    await all_resumed.wait()
                assert resumed["next_frame"] == 1
                await again.push(loud(1))
                assert (await again.frame()).sequence == 1
            except ConnectionClosed:
                return again.ws.close_code or 0
            await finish(again)
            return 1000

    codes = await asyncio.gather(*(resume() for _ in range(8)))
    assert sorted(codes) == [1000] + [4001] * 7
    assert levels(fake) == [0, 1]


async def test_a_resume_while_the_old_connection_is_stuck_in_a_send(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_unsent_frames=2_000, max_speed=0)) as server:
        async with SessionClient.connect(server.ws_url, max_queue=1) as old:
            await old.open()
            await old.message()
            old.ws.transport.pause_reading()
            for level in range(1_500):
                await old.push(loud(level))
                if level % 20 == 0:
                    await asyncio.sleep(0.02)  # no more messages a second than a server takes
            await server.until(lambda: len(fake.sessions[0].heard) == 1_500)
            async with SessionClient.connect(server.ws_url) as new:
                assert (await new.resume(old.secret, 0))["next_frame"] == 1_500
                for sequence in range(1_500):
                    frame = await new.frame()
                    assert frame.sequence == sequence
                    assert frame.audio[:2] == sequence.to_bytes(2, "little")
                await finish(new)
        server.check_clean()
