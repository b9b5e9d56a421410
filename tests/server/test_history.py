"""``open`` with a history: a call that began elsewhere."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipecat_personaplex.constants import FRAME_SAMPLES, STREAMS
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.protocol.call_history import pack_history
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient, finish
from tests.server.live import LiveServer, refusal


def history(frames: int, audio_frames: int) -> CallHistory:
    tokens = np.arange(frames * STREAMS).reshape(frames, STREAMS) % 2_048
    caller = np.arange(audio_frames * FRAME_SAMPLES, dtype=np.float32) % 1_024 / 1_024
    return CallHistory(tokens.astype(np.int16), caller)


def opening(frames: object, audio_frames: object) -> str:
    message = {"type": "open", "voice": "NATF2", "history": frames, "history_audio": audio_frames}
    return json.dumps(message)


def token_frames(frames: int) -> bytes:
    return b"\x02" + bytes(34 * frames)


def audio_frames(frames: int) -> bytes:
    return b"\x03" + bytes(3_840 * frames)


@pytest.mark.parametrize(("frames", "audio"), [(1, 0), (1, 1), (1_801, 17), (3_000, 32)])
async def test_a_call_continues(
    server: LiveServer, fake: ServedFakeEngine, frames: int, audio: int
) -> None:
    sent = history(frames, audio)
    async with SessionClient.connect(server.ws_url) as client:
        await client.ws.send(opening(frames, audio))
        for message in pack_history(sent):
            assert len(message) <= 65_536
            await client.ws.send(message)
        assert (await client.message())["type"] == "opened"
        assert await client.message() == {"type": "ready"}
        await client.push()
        assert (await client.frame()).sequence == 0
        got = fake.sessions[0].opened_with
        assert got is not None and got.tokens.dtype == np.int16
        np.testing.assert_array_equal(got.tokens, sent.tokens)
        np.testing.assert_array_equal(got.caller, sent.caller)
        await finish(client)


@pytest.mark.parametrize(
    "first",
    [
        opening(0, 0),
        opening(-1, 0),
        opening(3_001, 0),
        opening("5", 0),
        opening(5, -1),
        opening(5, 33),
        opening(None, 3),
    ],
)
async def test_bad_lengths(server: LiveServer, first: str) -> None:
    error, code = await refusal(server, first)
    assert (error["code"], code) == ("bad_message", 1008)


@pytest.mark.parametrize(
    "messages",
    [
        [""],
        ["{}"],
        ['{"type": "close"}'],
        [b""],
        [b"\x01" + bytes(4 + 3_840)],
        [b"\x02"],
        [b"\x02" + bytes(33)],
        [token_frames(4)],
        [token_frames(1), token_frames(3)],
        [b"\x02" + b"\xff\xff" * 17],
        [audio_frames(1)],
        [token_frames(3), audio_frames(3)],
        [token_frames(3), audio_frames(0)],
        [token_frames(3), b"\x03" + bytes(3_839)],
        [token_frames(3), token_frames(1)],
    ],
)
async def test_bad_parts(
    server: LiveServer, fake: ServedFakeEngine, messages: list[str | bytes]
) -> None:
    error, code = await refusal(server, opening(3, 2), *messages)
    assert (error["code"], code) == ("bad_message", 1008)
    assert not fake.sessions


async def test_parts_of_too_many_frames(server: LiveServer) -> None:
    assert (await refusal(server, opening(3_000, 0), token_frames(1_801)))[1] == 1008
    messages = opening(1, 32), token_frames(1), audio_frames(17)
    assert (await refusal(server, *messages))[0]["code"] == "bad_message"


async def test_a_history_that_does_not_arrive_in_time(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.connect(server.ws_url) as client:
        await client.ws.send(opening(2, 0))
        await client.ws.send(token_frames(1))
        server.advance(11)
        error, code = await client.ended()
        assert (error["code"], code) == ("limit_reached", 1008)
        assert not fake.sessions


async def test_an_engine_that_cannot_continue_calls(
    fake: ServedFakeEngine,
) -> None:
    fake.features = frozenset({"say"})
    with LiveServer(fake) as server:
        error, code = await refusal(server, opening(1, 0), token_frames(1))
        assert (error["code"], code) == ("config_error", 1008)
        assert not fake.sessions
