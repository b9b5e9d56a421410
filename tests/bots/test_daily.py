"""The assistant in a Daily room: the real transport up to the key check, then a fake one."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections.abc import Callable, Iterator

import aiohttp
import numpy as np
import pytest
from pipecat.pipeline.worker import PipelineWorker
from pipecat.runner.types import DailyRunnerArguments

from bots.assistant import TEACHER, converse
from bots.handshakes import Handshakes
from bots.host import BotCall, BotHost
from bots.transports import open_transport, sample_rate, transport_of, transport_params
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from tests.golden_data import CHECKPOINT
from tests.helpers.bots import BotProcess, run_bot
from tests.helpers.engines import FakeEngine
from tests.helpers.logs import recorded
from tests.helpers.pipelines import TIMEOUT, tone
from tests.helpers.rest import RestApi
from tests.helpers.transports import FakeInput, FakeTransport, Heard

pytestmark = pytest.mark.realtime

daily = pytest.importorskip("daily", reason="Daily's client is not installed")

KEY = "not-a-valid-daily-key"
ROOM = DailyRunnerArguments(room_url="https://example.daily.co/room", token="token")


@pytest.fixture
def api() -> Iterator[RestApi]:
    """Daily's REST API, which refuses the key."""
    with RestApi(401, b'{"error": "authentication-error"}') as api:
        yield api


def options() -> list[str]:
    return ["-t", "daily", "--model", str(CHECKPOINT), "--device", "cpu"]


async def test_daily_transport_settings() -> None:
    from pipecat.transports.daily.transport import DailyParams, DailyTransport

    assert transport_of(ROOM) == "daily"
    assert sample_rate("daily") == 24_000
    transport = await open_transport(ROOM)
    assert isinstance(transport, DailyTransport)
    assert transport.room_url == ROOM.room_url
    params = transport_params()["daily"]()
    assert isinstance(params, DailyParams)
    assert params.audio_in_enabled and params.audio_out_enabled
    # One mix of all participants, and no inserted silence, which would delay the rest of the call.
    assert not params.audio_in_user_tracks
    assert not params.audio_out_auto_silence
    assert 8 % params.audio_out_10ms_chunks == 0


def test_direct_with_a_wrong_key_gives_a_one_line_error(api: RestApi) -> None:
    result = run_bot(
        "bots.assistant", *options(), "--direct", DAILY_API_KEY=KEY, DAILY_API_URL=f"{api.url}/v1"
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    # An extension module may print more while the interpreter exits.
    (message,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "no Daily room" in message and "authentication-error" in message
    ((path, key, _),) = api.requests
    assert (path, key) == ("/v1/rooms", f"Bearer {KEY}")


async def test_a_call_whose_room_daily_refuses_gets_502(api: RestApi) -> None:
    body = {"transport": "daily", "createDailyRoom": True}
    with BotProcess(
        "bots.assistant", *options(), DAILY_API_KEY=KEY, DAILY_API_URL=f"{api.url}/v1"
    ) as bot:
        async with aiohttp.ClientSession(bot.url) as session:
            for request in (session.get("/daily"), session.post("/start", json=body)):
                async with request as answer:
                    assert answer.status == 502
                    assert "could not be set up" in (await answer.json())["detail"]
            async with session.get("/status") as answer:
                assert answer.status == 200, "the bot no longer serves"
    assert "Traceback" not in bot.log
    failures = [line for line in bot.log.splitlines() if "a call could not start" in line]
    assert len(failures) == 2
    assert all("authentication-error" in line for line in failures)


class DailyInputTransport(FakeInput):
    """The service knows Daily's transport by this name."""


def room_transport(hear: Heard) -> FakeTransport:
    """A fake transport with Daily's real parameters."""
    return FakeTransport(transport_params()["daily"](), hear, DailyInputTransport)


class Room:
    """The assistant's pipeline with a fake transport that has Daily's real parameters."""

    def __init__(self, engine: FakeEngine):
        self.heard = bytearray()
        self.arrivals: list[float] = []
        self.transport = room_transport(self._hear)
        self.running: set[PipelineWorker] = set()
        self.call = BotCall(
            engine,
            self.transport,
            PersonaPlexLLMSettings(voice="NATF2", system_instruction="You enjoy tea."),
            Namespace(transport="daily", greeting="Good morning.", create_stt=None, backends=None),
            rate=sample_rate("daily"),
            idle_seconds=None,
            running=self.running,
        )

    def _hear(self, now: float, audio: bytes) -> None:
        self.arrivals.append(now)
        self.heard += audio

    async def __aenter__(self) -> Room:
        self.task = asyncio.create_task(converse(self.call))
        await asyncio.wait_for(self.transport.ready.wait(), TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in list(self.running):
            await worker.cancel()
        await asyncio.wait_for(self.task, TIMEOUT)

    async def talk(self, samples: np.ndarray) -> None:
        """Send 20 ms of audio every 20 ms, as Daily's client does."""
        begun = time.monotonic()
        for index, chunk in enumerate(samples.reshape(-1, 480)):
            await asyncio.sleep(max(0.0, begun + 0.02 * (index + 1) - time.monotonic()))
            await self.transport.say(chunk.tobytes(), 24_000)

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.shield(self.task), TIMEOUT)


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


async def test_a_conversation_in_a_room(engine: FakeEngine) -> None:
    async with Room(engine) as room:
        await room.transport.connect()
        await until(lambda: bool(engine.sessions))
        await room.talk(tone(2.0))
        await room.transport.hang_up()
        await room.ended()
    (session,) = engine.sessions
    assert session.persona.text_prompt == "You enjoy tea."
    assert session.said == ["Good morning."]
    assert session.closed
    sound = np.frombuffer(bytes(room.heard), dtype=np.int16)
    # The engine repeats its input.
    assert len(sound) >= 1.8 * 24_000 and np.abs(sound).max() > 7_000
    assert np.diff(room.arrivals).max() <= 0.2


async def test_a_call_begins_when_somebody_has_joined(engine: FakeEngine) -> None:
    async with Room(engine) as room:
        await asyncio.sleep(0.3)
        assert not engine.sessions and not room.heard
        await room.transport.connect()
        await until(lambda: bool(engine.sessions))
        await room.talk(tone(0.5))
    (session,) = engine.sessions
    assert session.said == ["Good morning."]


async def test_a_call_lasts_until_everybody_has_left(engine: FakeEngine) -> None:
    async with Room(engine) as room:
        room.transport.people["colleague"] = {}
        await room.transport.connect()
        await room.talk(tone(0.2))
        await room.transport.hang_up("colleague")
        await room.talk(tone(0.5))
        assert not room.task.done() and engine.open_sessions
        await room.transport.hang_up()
        await room.ended()


async def test_a_failed_join_ends_the_call(engine: FakeEngine) -> None:
    async with Room(engine) as room:
        await room.transport.fail("Error joining https://example.daily.co/room: no such room")
        await room.ended()
    assert not engine.open_sessions
    assert not room.running


class Rooms:
    """A bot's calls in Daily rooms, each with a fake transport."""

    def __init__(self, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, **options: object):
        self.transports: list[FakeTransport] = []
        self.host = BotHost("A bot.", converse, voice="NATF2", prompt=TEACHER)
        self.host._engine = engine
        self.host._args = Namespace(
            **{"transport": "daily", "max_sessions": None, "voice": None, "prompt": TEACHER}
            | {"greeting": "Hello.", "create_stt": None, "backends": None}
            | options
        )
        self.host._signals_chained = True  # pytest has handlers of its own

        async def open_room(arguments: object) -> FakeTransport:
            self.transports.append(room_transport(lambda now, audio: None))
            return self.transports[-1]

        monkeypatch.setattr("bots.host.open_transport", open_room)

    async def open(self) -> tuple[FakeTransport, asyncio.Task[None]]:
        """Start a call; the bot has joined its room when this returns."""
        count = len(self.transports)
        call = asyncio.create_task(self.host.serve_call(ROOM))
        await until(lambda: len(self.transports) > count)
        await asyncio.wait_for(self.transports[-1].ready.wait(), TIMEOUT)
        return self.transports[-1], call


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110  also of other threads
            await asyncio.sleep(0.01)


async def test_a_room_takes_a_slot_when_somebody_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeEngine(max_sessions=1) as engine, recorded("INFO") as log:
        rooms = Rooms(engine, monkeypatch)
        (first, first_call), (second, second_call) = await rooms.open(), await rooms.open()
        assert not rooms.host.full and not engine.sessions
        await second.connect()
        await until(lambda: bool(engine.open_sessions))
        assert rooms.host.full
        await first.connect()
        await asyncio.wait_for(first_call, TIMEOUT)  # there is no slot
        assert log.containing("call refused") and len(engine.open_sessions) == 1
        await second.hang_up()
        await asyncio.wait_for(second_call, TIMEOUT)
        assert not rooms.host.full and not engine.open_sessions
        third, third_call = await rooms.open()
        await third.connect()
        await until(lambda: rooms.host.full)
        await third.hang_up()
        await asyncio.wait_for(third_call, TIMEOUT)


async def test_rooms_that_nobody_joins_end(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms(engine, monkeypatch, connect_seconds=0.2)
    _, call = await rooms.open()
    await asyncio.wait_for(call, TIMEOUT)
    rooms = Rooms(engine, monkeypatch)
    rooms.host._handshakes = Handshakes(1)
    _, oldest = await rooms.open()
    _, newest = await rooms.open()
    await asyncio.wait_for(oldest, TIMEOUT)
    assert not newest.done()
    rooms.host._handshakes.end()  # the bot stops
    await asyncio.wait_for(newest, TIMEOUT)
    assert not engine.sessions and not rooms.host._running


async def test_a_room_that_fails_ends_its_call(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = Rooms(engine, monkeypatch)
    transport, call = await rooms.open()
    await transport.fail("Error joining: no such room")
    await asyncio.wait_for(call, TIMEOUT)
    assert not rooms.host._handshakes._waiting
