"""Instructions during a session: say with progress, hush, hold, release and prompt."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import PromptTooLong
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient, cut, finish
from tests.server.live import LiveServer, close_all, refusal


async def receive(client: SessionClient, frames: int, reports: int) -> list[dict[str, Any]]:
    """Receive this many frames and reports in any order; return the reports."""
    received: list[dict[str, Any]] = []
    while frames or len(received) < reports:
        data = await client.ws.recv()
        if isinstance(data, str):
            received.append(json.loads(data))
        else:
            frames -= 1
    return received


async def push(client: SessionClient, frames: int, reports: int) -> list[dict[str, Any]]:
    """Push frames; return the reports that come with their output."""
    for _ in range(frames):
        await client.push()
    received = await receive(client, frames, reports)
    for index, report in enumerate(received):
        # The engine may report the end of a speech a little after its last frame.
        if report.get("state") == "speaking":
            with suppress(TimeoutError):
                [received[index]] = await asyncio.wait_for(receive(client, 0, 1), 0.1)
    return received


def speech(id: int, state: str, spoken: int) -> dict[str, Any]:
    return {"type": "speech", "id": id, "state": state, "spoken": spoken}


async def test_hello_lists_the_features(fake: ServedFakeEngine) -> None:
    fake.features = frozenset({"say", "hold"})
    with LiveServer(fake) as server:
        async with SessionClient.connect(server.ws_url) as client:
            assert client.hello["features"] == ["hold", "say"]


async def test_a_speech_reports_its_progress(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("say", text="Good morning", id=4, when="now")
        assert await push(client, 1, 1) == [speech(4, "speaking", 1)]
        assert await push(client, 1, 1) == [speech(4, "said", 2)]
        assert fake.sessions[0].said_when == ["now"]
        assert await push(client, 2, 0) == []
        await finish(client)


async def test_hush_cuts_one_speech_or_all(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        for id in range(3):
            await client.say("say", text="one two", id=id)
        assert await push(client, 1, 1) == [speech(0, "speaking", 1)]
        await client.say("hush", id=1)
        assert await client.message() == speech(1, "cut", 0)
        await client.say("hush", id=1)
        await client.say("hush", id=99)
        await client.say("hush")
        reports = await receive(client, 0, 2)
        assert sorted(reports, key=lambda report: report["id"]) == [
            speech(0, "cut", 1),
            speech(2, "cut", 0),
        ]
        assert await push(client, 2, 0) == []
        await finish(client)


async def test_many_speeches_that_are_cut_at_once(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        for id in range(64):
            await client.say("say", text="word", id=id)
        await client.say("say", text="word", id=64)
        refused = await receive(client, 0, 2)
        assert (refused[0]["code"], refused[0]["fatal"]) == ("limit_reached", False)
        assert refused[1] == speech(64, "cut", 0)
        await client.say("hush")
        reports = await receive(client, 0, 64)
        assert sorted(reports, key=lambda report: report["id"]) == [
            speech(id, "cut", 0) for id in range(64)
        ]
        await client.say("say", text="word", id=65)
        assert await push(client, 1, 1) == [speech(65, "said", 1)]
        await finish(client)


async def test_texts_without_an_id_are_counted_too(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        for _ in range(65):
            await client.say("say", text="word")
        [refused] = await receive(client, 0, 1)
        assert (
            refused["code"] == "limit_reached" and "64 speeches already wait" in refused["message"]
        )
        await client.say("hush")
        assert await push(client, 1, 0) == []
        await client.say("say", text="word", id=0)
        assert await push(client, 1, 1) == [speech(0, "said", 1)]
        await finish(client)


async def test_a_flood_of_texts_is_refused(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        refused: list[str] = []
        for start in range(0, 150, 30):
            for id in range(start, start + 30):
                await client.say("say", text="word", id=id)
            await client.say("hush")
            cut = 0
            while cut < 30:
                [report] = await receive(client, 0, 1)
                if report["type"] == "error":
                    refused.append(report["message"])
                else:
                    cut += report["state"] == "cut"
        assert 1 <= len(refused) <= 22, "128 at once, and ten a second"
        assert all("10 texts a second" in message for message in refused)
        await finish(client)


async def test_hold_and_release(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.on_open = lambda session: session.pieces.extend([" a", " b"])
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("hold", seconds=1)
        await client.push()
        assert (await client.frame()).text == ""
        await client.say("release")
        await client.push()
        assert (await client.frame()).text == " a"
        assert fake.sessions[0].holds == [1.0, 0.0]
        await finish(client)


async def test_a_prompt_update(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("prompt", id=7, voice="NATM1", text_prompt="You sell tea.", history=10)
        done = await client.message()
        assert (done["type"], done["id"], done["ok"]) == ("prompted", 7, True)
        assert fake.sessions[0].persona == Persona("NATM1", "You sell tea.")
        assert fake.sessions[0].prompt_history == [10]
        await finish(client)
    assert 'prompt_updates_total{result="done"}' in server.get("/metrics").text


async def test_refused_prompt_updates(server: LiveServer, fake: ServedFakeEngine) -> None:
    fake.ready = False
    async with SessionClient.connect(server.ws_url) as client:
        await client.open()
        session = fake.sessions[0]
        session.make_ready()
        assert await client.message() == {"type": "ready"}
        await client.say("prompt", id=1, voice="NATM1", text_prompt="x" * 4_001)
        await client.say("prompt", id=2, voice="NATX")
        await client.say("prompt", id=3, voice="NATM1")  # in progress
        await client.say("prompt", id=4, voice="NATM1")
        refused = await receive(client, 0, 3)
        assert [(each["id"], each["ok"], each["code"]) for each in refused] == [
            (1, False, "limit_reached"),
            (2, False, "voice_not_found"),
            (4, False, "limit_reached"),
        ]
        assert refused[1]["details"]["known"] == ["NATF2", "NATM1"]
        session.finish_prompt(PromptTooLong(3_100, 2_999))
        done = await client.message()
        assert (done["id"], done["ok"], done["code"]) == (3, False, "prompt_too_long")
        assert session.persona.voice == "NATF2"
        await finish(client)


async def test_prompt_updates_are_limited_to_one_a_second(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        results = []
        for id in range(4):
            await client.say("prompt", id=id, voice="NATM1")
            results.append((await client.message())["ok"])
        assert results == [True, True, False, False]
        server.advance(1.0)
        await client.say("prompt", id=9, voice="NATM1")
        assert (await client.message())["ok"]
        await finish(client)


async def test_unsupported_instructions_are_refused(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    fake.on_open = lambda session: setattr(session, "features", frozenset())
    async with SessionClient.opened(server.ws_url) as client:
        for kind, more in (
            ("say", {"text": "Hi"}),
            ("hush", {}),
            ("hold", {"seconds": 1}),
            ("release", {}),
            ("update", {"sampling": {}}),
        ):
            await client.say(kind, **more)
            refused = await client.message()
            assert (refused["code"], refused["fatal"]) == ("config_error", False)
        await client.say("prompt", voice="NATF2")
        assert (await client.message())["code"] == "config_error"
        await finish(client)


@pytest.mark.parametrize(
    "message",
    [
        '{"type": "say", "text": "x", "id": -1}',
        '{"type": "say", "text": "x", "id": 2147483648}',
        '{"type": "say", "text": "x", "id": "1"}',
        '{"type": "say", "text": "x", "id": 1.5}',
        '{"type": "say", "text": "x", "when": "later"}',
        '{"type": "hush", "id": []}',
        '{"type": "hush", "ids": 1}',
        '{"type": "hold"}',
        '{"type": "hold", "seconds": -1}',
        '{"type": "hold", "seconds": 30.1}',
        '{"type": "hold", "seconds": 1e999}',
        '{"type": "hold", "seconds": NaN}',
        '{"type": "hold", "seconds": true}',
        '{"type": "release", "seconds": 1}',
        '{"type": "prompt"}',
        '{"type": "prompt", "voice": null}',
        '{"type": "prompt", "voice": "NATF2", "history": -1}',
        '{"type": "prompt", "voice": "NATF2", "history": 1e30}',
        '{"type": "prompt", "voice": "NATF2", "sampling": {}}',
        '{"type": "speech", "id": 1, "state": "said", "spoken": 1}',
        '{"type": "prompted", "ok": true}',
    ],
)
async def test_bad_instructions_end_the_session(server: LiveServer, message: str) -> None:
    error, code = await refusal(server, message, after_open=True)
    assert (error["code"], code) == ("bad_message", 1008)


async def test_the_id_of_a_speech_must_grow(server: LiveServer) -> None:
    say = '{"type": "say", "text": "x", "id": 1}'
    error, code = await refusal(server, say, say, after_open=True)
    assert (error["code"], code) == ("bad_message", 1008)


async def test_reports_that_a_client_missed_are_sent_again(
    server: LiveServer, fake: ServedFakeEngine
) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("say", text="one", id=1)
        await client.say("say", text="two three", id=2)
        await client.say("prompt", id=3, voice="NATM1")
        assert len(await push(client, 2, 3)) == 3
        await cut(client)
    async with SessionClient.connect(server.ws_url) as again:
        resumed = await again.resume(client.secret, 0)
        assert resumed["instructions"] == 3
        reports = await receive(again, 2, 3)
        assert {(each["type"], each["id"]) for each in reports} == {
            ("speech", 1),
            ("speech", 2),
            ("prompted", 3),
        }
        assert speech(2, "speaking", 1) in reports
        again.sequence = resumed["next_frame"]
        assert await push(again, 1, 1) == [speech(2, "said", 2)]
        await finish(again)


async def test_refused_instructions_count_too(server: LiveServer, fake: ServedFakeEngine) -> None:
    async with SessionClient.opened(server.ws_url) as client:
        await client.say("update", sampling={"top_k_text": 0})
        await client.say("say", text="x" * 4_001)
        await client.say("hush")
        await client.say("stats")  # not an instruction
        assert [m["type"] for m in await receive(client, 0, 3)] == ["error", "error", "stats"]
        await cut(client)
    async with SessionClient.connect(server.ws_url) as again:
        assert (await again.resume(client.secret, 0))["instructions"] == 3
    await close_all(server, fake)
