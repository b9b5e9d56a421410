"""The parts that protect a bot's calls: pace, presence, handshakes, ids, rates."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from pipecat.frames.frames import EndFrame, InputAudioRawFrame, UserAudioRawFrame
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from bots.caller_watch import CallerWatch
from bots.handshakes import Handshakes
from bots.host import BotHost
from bots.start_rate import StartRate
from bots.twilio import CallerSerializer, TwilioStart, read_handshake
from pipecat_personaplex.service.pace import PaceLimit
from tests.helpers.pipelines import ManualClock, RunningPipeline
from tests.helpers.telephone import ACCOUNT, CREDENTIALS

IDS = {"accountSid": ACCOUNT, "callSid": "CA" + "1" * 32, "streamSid": "MZ" + "2" * 32}


class TestPace:
    def test_real_time_passes_and_a_burst_of_four_seconds(self) -> None:
        clock = ManualClock()
        limit = PaceLimit(clock)
        assert sum(limit.allows(0.02) for _ in range(1_000)) in (199, 200)
        for _ in range(3_000):
            clock.now += 0.02
            assert limit.allows(0.0202), "a sound card whose clock is 1 % fast"

    def test_more_is_dropped_and_counted(self) -> None:
        limit = PaceLimit(ManualClock())
        assert not limit.allows(5.9)
        assert limit.allows(4.0) and not limit.allows(0.02)
        assert limit.dropped_seconds == pytest.approx(5.92)

    async def test_of_a_telephone_call(self) -> None:
        serializer = CallerSerializer(TwilioStart(*IDS.values()), CREDENTIALS)
        serializer.pace = PaceLimit(ManualClock())
        serializer._sample_rate = 8_000

        def media(samples: int) -> str:
            payload = base64.b64encode(b"\xff" * samples).decode()
            return json.dumps({"event": "media", "media": {"payload": payload}})

        frames = [await serializer.deserialize(media(160)) for _ in range(400)]
        assert sum(frame is not None for frame in frames) == pytest.approx(200, abs=3)
        assert await serializer.deserialize(media(45_000)) is None
        for text in ("{", "[" * 50_000, "7", '{"media": 3}', '{"media": {"payload": [1]}}'):
            try:
                assert await serializer.deserialize(text) is None
            except AttributeError:
                assert text == "7", "not an object: the call ends"


class TestCallerWatch:
    async def test_fast_audio_is_dropped_before_the_pipeline(self) -> None:
        watch = CallerWatch(ManualClock())
        async with RunningPipeline([watch]) as pipeline:
            for _ in range(300):
                await pipeline.send(InputAudioRawFrame(bytes(960), 24_000, 1))
                await pipeline.send(UserAudioRawFrame(bytes(960), 24_000, 1, user_id="a"))
            await pipeline.send(EndFrame())
            await pipeline.ended()
        passed = len(pipeline.seen(InputAudioRawFrame))
        assert passed in (398, 400), "200 of each speaker, give or take a rounding"
        assert watch.dropped_seconds == pytest.approx((600 - passed) * 0.02)

    async def test_audio_of_an_impossible_format_is_dropped_before_the_pipeline(self) -> None:
        async with RunningPipeline([CallerWatch(ManualClock())]) as pipeline:
            for rate, channels in ((1_500_000_000, 1), (1, 1), (24_000, 4_000), (8_000, 2)):
                await pipeline.send(InputAudioRawFrame(bytes(8_000), rate, channels))
            await pipeline.send(EndFrame())
            await pipeline.ended()
        assert [frame.sample_rate for frame in pipeline.seen(InputAudioRawFrame)] == [8_000]

    @pytest.mark.parametrize(
        ("connected", "limits", "reason"),
        [
            (False, (20.0, 60.0), "the caller did not connect for 20 s"),
            (True, (20.0, 60.0), "no audio from the caller for 60 s"),
            (True, (20.0, None), None),
            (False, (None, 60.0), None),
        ],
    )
    async def test_an_absent_caller_is_hung_up(
        self,
        monkeypatch: pytest.MonkeyPatch,
        connected: bool,
        limits: tuple[float | None, float | None],
        reason: str | None,
    ) -> None:
        monkeypatch.setattr("bots.caller_watch._POLL_SECONDS", 0.0)
        clock = ManualClock()
        watch = CallerWatch(clock)
        ended: list[str] = []

        async def end(text: str) -> None:
            ended.append(text)

        if connected:
            watch.connected()
        task = asyncio.create_task(watch.end_if_absent(*limits, end))
        expected = min(limit for limit in limits if limit is not None)
        clock.now += (60.0 if connected and limits[1] else expected) - 1
        for _ in range(5):
            await asyncio.sleep(0)
        assert not ended
        clock.now += 2 if reason else 1_000
        for _ in range(5):
            await asyncio.sleep(0)
        assert ended == ([reason] if reason else [])
        task.cancel()


class TestHandshakes:
    async def test_one_that_takes_too_long_is_ended(self) -> None:
        handshakes = Handshakes(2)
        with pytest.raises(ValueError, match=r"did not connect within 0\.01 s"):
            await handshakes.run(asyncio.sleep(60), 0.01)
        assert await handshakes.run(asyncio.sleep(0, "done"), None) == "done"
        assert not handshakes._waiting

    async def test_a_new_one_ends_the_oldest(self) -> None:
        handshakes = Handshakes(2)
        waiting = [
            asyncio.create_task(handshakes.run(asyncio.sleep(seconds, seconds), None))
            for seconds in (60.0, 0.05, 0.05)
        ]
        with pytest.raises(ValueError, match="too many connections"):
            await waiting[0]
        assert await asyncio.gather(*waiting[1:]) == [0.05, 0.05]

    async def test_an_error_of_a_handshake_is_raised(self) -> None:
        async def fail() -> None:
            raise ValueError("not Twilio")

        with pytest.raises(ValueError, match="not Twilio"):
            await Handshakes(2).run(fail(), 1.0)

    async def test_all_end_when_the_bot_stops(self) -> None:
        handshakes = Handshakes(2)
        waiting = asyncio.create_task(handshakes.run(asyncio.sleep(60), None))
        await asyncio.sleep(0)
        handshakes.end()
        with pytest.raises(ValueError, match="the bot stops"):
            await waiting


class Socket:
    def __init__(self, *messages: object):
        self._messages = [m if isinstance(m, str) else json.dumps(m) for m in messages]

    async def receive_text(self) -> str:
        if not self._messages:
            raise WebSocketDisconnect(1006)
        return self._messages.pop(0)


async def handshake(*messages: object) -> TwilioStart:
    socket: Any = Socket(*messages)
    return await read_handshake(socket, ACCOUNT)


class TestTwilioHandshake:
    async def test_twilios_own(self) -> None:
        start = {"event": "start", "start": IDS | {"customParameters": {}}}
        expected = TwilioStart(*IDS.values())
        assert await handshake({"event": "connected"}, start) == expected
        assert await handshake(start) == expected

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("callSid", "../../../Messages"),
            ("callSid", "CA" + "1" * 31),
            ("callSid", "CA" + "1" * 33),
            ("callSid", "CA" + "1" * 32 + "\n"),
            ("callSid", "CA" + "g" * 32),
            ("callSid", None),
            ("callSid", ["CA" + "1" * 32]),
            ("streamSid", "CA" + "1" * 32),
            ("streamSid", 'MZ"}' + "2" * 29),
            ("accountSid", "AC" + "1" * 32),
            ("accountSid", "AC/../" + "0" * 28),
        ],
    )
    async def test_ids_of_another_form_or_account(self, name: str, value: object) -> None:
        with pytest.raises(ValueError, match=f"{name}|another account"):
            await handshake({"event": "start", "start": IDS | {name: value}})

    @pytest.mark.parametrize(
        "messages", [("[1]", "7"), ("[" * 60_000, "{}"), (), ({"event": "start"}, "{}"), ("{", "{")]
    )
    async def test_something_else(self, messages: tuple[object, ...]) -> None:
        with pytest.raises(ValueError):
            await handshake(*messages)


async def test_calls_are_started_at_a_limited_rate() -> None:
    now = 0.0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limited = StartRate(app, lambda: now)

    async def statuses(address: str, path: str, count: int) -> list[int]:
        transport = httpx.ASGITransport(app=limited, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://bot") as http:
            return [(await http.post(path)).status_code for _ in range(count)]

    assert await statuses("10.0.0.1", "/api/offer", 12) == [200] * 10 + [429] * 2
    assert await statuses("10.0.0.1", "/client/", 50) == [200] * 50
    assert await statuses("10.0.0.2", "/sessions/a/api/offer", 12) == [200] * 10 + [429] * 2
    assert await statuses("10.0.0.3", "/start", 1) == [429], "all addresses together"
    now = 1.0
    assert await statuses("10.0.0.1", "/api/offer", 2) == [200, 429]
    for number in range(5_000):
        now += 1.0
        limited._allows(str(number))
    assert len(limited._addresses) <= 4_096


def test_an_early_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the options are parsed there is no ``--direct`` to look at."""

    async def converse(call: object) -> None: ...

    def fail(parser: object) -> None:
        raise RuntimeError("the actual error")

    monkeypatch.setattr("pipecat.runner.run.main", fail)
    with pytest.raises(RuntimeError, match="the actual error"):
        BotHost("A bot.", converse, voice="NATF2", prompt="You are a bot.").main()
