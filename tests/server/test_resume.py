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
from pipecat_personaplex.errors import EngineFailed, SessionFailed
from pipecat_personaplex.protocol.frames import ServerFrame
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.keys import new_key
from tests.golden_data import FRIEND, conversation
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import FRAME, SessionClient, frames_of, loud
from tests.server.live import LiveServer


async def cut(client: SessionClient) -> None:
    """The network is gone: no close frame, nothing."""
    client.ws.transport.abort()
    await client.ws.wait_closed()


async def finish(client: SessionClient) -> None:
    await client.say("close")
    assert await client.ended() == ({"type": "closed"}, 1000)


def levels(fake: ServedFakeEngine) -> list[int]:
    """What the first session heard, frame by frame."""
    return [round(float(pcm[0]) * 32768) for pcm in fake.sessions[0].heard]


async def test_a_goodbye_ends_the_session_at_once(server: LiveServer) -> None:
    """What a browser does whose page is left: nobody will come back for the slot."""
    for code in (1000, 1001):
        async with SessionClient.opened(server.ws_url) as client:
            await client.ws.close(code)
        await server.until(lambda: server.sessions == 0)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 0))["code"] == "session_lost"


async def test_a_goodbye_without_a_code_is_one(fake: ServedFakeEngine) -> None:
    """A browser's ``ws.close()``: a close frame that is empty."""
    with LiveServer(fake, ServerConfig(resume_seconds=300)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            client.ws.transport.write(b"\x88\x80" + bytes(4))
            await server.until(lambda: server.sessions == 0)
        server.check_clean()


@pytest.mark.parametrize("audio", ["pcm16", "opus"])
async def test_frames_come_again_byte_for_byte(server: LiveServer, audio: str) -> None:
    packets = []
    encode = opus_encoder() if audio == "opus" else lambda frame: frame
    async with SessionClient.opened(server.ws_url, audio=audio) as client:
        for level in range(10):
            await client.push(encode(loud(1_000 * level)))
            packets.append(await client.packet())
        await cut(client)
    async with SessionClient.connect(server.ws_url) as again:
        resumed = await again.resume(client.secret, 4)
        assert resumed == {"type": "resumed", "next_frame": 10, "ready": True}
        assert [await again.packet() for _ in range(6)] == packets[4:]
        await again.push(encode(loud(500)))
        assert (await again.frame()).sequence == 10
        await finish(again)


def opus_encoder() -> Any:
    import opuslib_next

    encoder = opuslib_next.Encoder(24_000, 1, opuslib_next.APPLICATION_AUDIO)
    return lambda frame: encoder.encode(frame.tobytes(), FRAME)


@pytest.mark.parametrize("seed", range(5))
async def test_a_conversation_with_many_cuts_is_the_same_conversation(
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
            # Never all of them: an answer may be on its way when the network goes.
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


async def test_a_cut_costs_no_token(engine: Engine) -> None:
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


async def test_what_is_answered_meanwhile_is_sent_on_return(
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


async def test_a_session_that_became_ready_meanwhile(
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
        await last.frame()  # and not ready once more
        await finish(last)


async def test_ready_is_told_once(server: LiveServer, fake: ServedFakeEngine) -> None:
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

    async def resume(number: int) -> int:
        async with SessionClient.connect(server.ws_url) as again:
            try:
                resumed = await again.resume(client.secret, 1)
                assert resumed["next_frame"] == 1
                await asyncio.sleep(0.5)
                await again.push(loud(1))
                assert (await again.frame()).sequence == 1
            except ConnectionClosed:
                return again.ws.close_code or 0
            await finish(again)
            return 1000

    codes = await asyncio.gather(*(resume(number) for number in range(8)))
    assert sorted(codes) == [1000] + [4001] * 7
    assert levels(fake) == [0, 1]


async def test_a_resume_while_the_old_connection_is_stuck_in_a_send(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(max_unsent_frames=2_000)) as server:
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


# What cannot be resumed.


async def lost(server: LiveServer, secret: str, next_frame: int = 0) -> tuple[str, int]:
    async with SessionClient.connect(server.ws_url) as client:
        await client.say("resume", session=secret, next_frame=next_frame)
        error, code = await client.ended()
        return error.get("code", ""), code


@pytest.mark.parametrize("secret", ["", "x", "../6vTq", "\0", "A" * 43, "A" * 60_000])
async def test_a_session_that_never_was(server: LiveServer, secret: str) -> None:
    assert await lost(server, secret) == ("session_lost", 1008)


@pytest.mark.parametrize("next_frame", [2, 1_000, 2**32, 10**30])
async def test_a_frame_that_never_was(server: LiveServer, next_frame: int) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push()
        await client.frame()
        assert await lost(server, client.secret, next_frame) == ("bad_message", 1008)
        # Its owner has not noticed.
        await client.push()
        await client.frame()
        await finish(client)


async def test_frames_that_are_forgotten(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0.8, max_unsent_frames=5)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(20):
                await client.push()
                await client.frame()
            assert await lost(server, client.secret, 4) == ("session_lost", 1008)
            assert (await client.ended())[1] == 4001
            assert fake.open_sessions == []
        server.check_clean()
        async with SessionClient.opened(server.ws_url) as client:
            for _ in range(20):
                await client.push()
                await client.frame()
            await cut(client)
        async with SessionClient.connect(server.ws_url) as again:
            await again.resume(client.secret, 5)
            assert [(await again.frame()).sequence for _ in range(15)] == list(range(5, 20))
            await finish(again)
        server.check_clean()


async def test_a_session_that_was_closed(server: LiveServer) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await finish(client)
    assert await lost(server, client.secret) == ("session_lost", 1008)


async def test_a_session_that_waited_too_long(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0.3)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await server.until(lambda: server.state.door.connections == 0)
        assert (len(fake.open_sessions), server.sessions) == (1, 1)  # it keeps its slot
        server.check_clean()
        assert await lost(server, client.secret) == ("session_lost", 1008)


async def test_each_cut_starts_the_wait_anew(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=1.0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        for _ in range(4):
            await asyncio.sleep(0.5)
            async with SessionClient.connect(server.ws_url) as again:
                assert (await again.resume(client.secret, 0))["type"] == "resumed"
                await cut(again)
        server.check_clean()


async def test_coming_and_going_is_not_audio(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.5, resume_seconds=1.0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        error: dict[str, Any] = {}
        # Idle for 0.5 s, and away for 1 s of it at most.
        for _ in range(100):
            async with SessionClient.connect(server.ws_url) as again:
                if (await again.resume(client.secret, 0))["type"] == "error":
                    break
                if not fake.open_sessions:
                    error, _ = await again.ended()
                    break
                await cut(again)
            await asyncio.sleep(0.2)
        assert not fake.open_sessions
        assert error.get("code") in (None, "limit_reached")
        server.check_clean()


async def test_who_is_away_is_not_idle(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(idle_seconds=0.5, resume_seconds=20.0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await client.push()
            await client.frame()
            await cut(client)
        await asyncio.sleep(1.5)
        async with SessionClient.connect(server.ws_url) as again:
            assert (await again.resume(client.secret, 1))["type"] == "resumed"
            await again.push()
            assert (await again.frame()).sequence == 1
            await finish(again)
        server.check_clean()


async def test_another_key_does_not_resume(fake: ServedFakeEngine) -> None:
    made = [new_key("owner"), new_key("thief")]
    owner, thief = ({"Authorization": f"Bearer {key}"} for key, _ in made)
    with LiveServer(fake, keys=[line for _, line in made]) as server:
        async with SessionClient.connect(server.ws_url, additional_headers=owner) as client:
            await client.open()
            async with SessionClient.connect(server.ws_url, additional_headers=thief) as other:
                assert (await other.resume(client.secret, 0))["code"] == "session_lost"
            await cut(client)
        async with SessionClient.connect(server.ws_url, additional_headers=owner) as again:
            assert (await again.resume(client.secret, 0))["type"] == "resumed"
            await finish(again)
        server.check_clean()


async def test_no_resume_where_the_server_allows_none(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(resume_seconds=0)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        server.check_clean()
        assert await lost(server, client.secret) == ("session_lost", 1008)


# The session ends while its client is away.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SessionFailed("this one broke"), "session_failed"),
        (EngineFailed("the device is lost"), "engine_failed"),
    ],
)
async def test_a_session_that_failed_meanwhile_says_so(
    server: LiveServer, fake: ServedFakeEngine, error: SessionFailed | EngineFailed, code: str
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.push(loud(1))
        first = await client.packet()
        await cut(client)
    fake.sessions[0].fail(error)
    await server.until(lambda: server.sessions == 0)  # slot and ticket are free at once
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["type"] == "resumed"
        assert await again.packet() == first
        message, close = await again.ended()
    assert (message["code"], message["message"], close) == (code, str(error), 1011)


async def test_draining_is_told_on_return(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=5)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await server.until(lambda: server.state.door.connections == 0)
        server.call(server.state.door.start_draining)
        async with SessionClient.connect(server.ws_url) as again:
            assert again.hello["draining"] is True
            await again.resume(client.secret, 0)
            assert (await again.message())["type"] == "draining"
            await finish(again)
        server.check_clean()


async def test_the_deadline_ends_who_is_away(fake: ServedFakeEngine) -> None:
    with LiveServer(fake, ServerConfig(drain_seconds=0.2)) as server:
        async with SessionClient.opened(server.ws_url) as client:
            await cut(client)
        await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(server.state.door.drain(), server.host.loop)
        )
        server.check_clean()
        async with SessionClient.connect(server.ws_url) as again:
            await again.say("resume", session=client.secret, next_frame=0)
            error, code = await again.ended()
        assert (error["code"], code) == ("engine_draining", 1001)
