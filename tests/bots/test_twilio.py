"""The assistant on the telephone; the test plays the part of Twilio."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import numpy as np
import pytest

from tests.golden_data import CHECKPOINT
from tests.helpers.bots import BotProcess
from tests.helpers.pipelines import tone
from tests.helpers.rest import RestApi
from tests.helpers.telephone import (
    ACCOUNT,
    CREDENTIALS,
    OPTIONS,
    PUBLIC,
    RATE,
    TOKEN,
    TwilioCall,
    signed,
)

pytestmark = pytest.mark.realtime

MODULE = "tests.bots.telephone_assistant"


@pytest.fixture(scope="module")
def api() -> Iterator[RestApi]:
    """Twilio's REST API; a bot only uses it to hang up."""
    with RestApi(200) as api:
        yield api


@pytest.fixture(scope="module")
def started_bot(api: RestApi) -> Iterator[BotProcess]:
    arguments = [*OPTIONS, "--model", str(CHECKPOINT), "--device", "cpu"]
    with BotProcess(
        MODULE,
        *arguments,
        *("--max-sessions", "2"),
        fresh=True,  # it changes a library before the bot imports it
        **CREDENTIALS,
        FAKE_TWILIO_API=api.url,
    ) as bot:
        yield bot


@pytest.fixture
async def bot(started_bot: BotProcess) -> AsyncIterator[BotProcess]:
    """The bot, with all slots free before and after the test."""
    yield started_bot
    async with AsyncExitStack() as stack:
        # Fills both slots with calls that get audio: a leaked slot fails here.
        for _ in range(2):
            await stack.enter_async_context(calling(started_bot))


def websocket(bot: BotProcess) -> str:
    return f"{bot.url.replace('http', 'ws')}/ws"


@asynccontextmanager
async def calling(bot: BotProcess) -> AsyncIterator[TwilioCall]:
    """A call that gets the agent's audio; waits first until a slot is free."""
    await until_free(bot)
    async with TwilioCall(websocket(bot)) as call:
        await call.answer()
        await call.heard(0.1)
        yield call


async def webhook(bot: BotProcess) -> str:
    """The bot's instructions to Twilio for a new caller."""
    caller = {"CallSid": "CA1", "From": "+4930123456"}
    headers = signed(f"https://{PUBLIC}/", caller)
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(bot.url, data=caller) as answer,
    ):
        assert answer.status == 200
        assert answer.content_type == "application/xml"
        return await answer.text()


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition that another thread or process fulfils."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_free(bot: BotProcess) -> None:
    async with asyncio.timeout(20):
        while "<Reject" in await webhook(bot):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def assert_real_time(call: TwilioCall, seconds: float) -> None:
    """Assert that the agent's stream has about this length and arrived in real time."""
    arrivals = np.array(call.arrivals)
    elapsed = arrivals[-1] - arrivals[0]
    audio = len(call.audio) / RATE
    gap = np.diff(arrivals).max()
    print(f"{audio:.2f} s of audio in {elapsed:.2f} s, longest gap {gap * 1e3:.0f} ms")
    # The stream begins once the prompt is computed, and its last 80 ms arrive together.
    assert audio >= seconds - 0.5
    assert abs(audio - elapsed) <= 0.25
    assert gap <= 0.2
    media = [message for message in call.received if message["event"] == "media"]
    assert {message["streamSid"] for message in media} == {call.stream_sid}
    assert {len(base64.b64decode(message["media"]["payload"])) for message in media} == {160}


async def test_the_webhook_connects_twilio_to_the_websocket(bot: BotProcess) -> None:
    text = await webhook(bot)
    assert f'<Connect>\n    <Stream url="wss://{PUBLIC}/ws">' in text


async def test_a_call(bot: BotProcess, api: RestApi) -> None:
    api.requests.clear()
    async with calling(bot) as call:
        await call.talk(tone(3.0, RATE))
        # Other messages that Twilio sends, which the bot ignores.
        await call.send("mark", mark={"name": "anything"})
        await call.send("dtmf", dtmf={"track": "inbound_track", "digit": "5"})
        await call.talk(tone(3.0, RATE))
        await call.stop()
    assert_real_time(call, 6.0)
    assert {message["event"] for message in call.received} == {"media"}
    assert np.abs(call.audio).max() > 1_000
    assert not api.requests, "the caller has hung up, so the bot must not"


async def test_two_calls_at_the_same_time_and_no_third(bot: BotProcess) -> None:
    async with calling(bot) as first, calling(bot) as second:
        assert '<Reject reason="busy"/>' in await webhook(bot)
        async with TwilioCall(websocket(bot)) as third:
            # Closed before the handshake: nothing is built for this caller.
            assert await third.close_code() == 1013
        assert not third.received
        random = np.random.default_rng(3).normal(0, 3_000, 4 * RATE).astype(np.int16)
        await asyncio.gather(first.talk(tone(4.0, RATE)), second.talk(random))
    assert_real_time(first, 4.0)
    assert_real_time(second, 4.0)
    length = min(len(first.audio), len(second.audio))
    assert not np.array_equal(first.audio[:length], second.audio[:length])


async def test_a_broken_connection_frees_its_slot(bot: BotProcess, api: RestApi) -> None:
    api.requests.clear()
    async with calling(bot) as staying, calling(bot) as cut:
        talking = asyncio.create_task(staying.talk(tone(3.0, RATE)))
        cut.cut()
        await until_free(bot)
        async with calling(bot) as later:
            await later.heard(0.5)
            assert "<Reject" in await webhook(bot)
            await talking
    assert_real_time(staying, 3.0)
    assert not api.requests


WRONG_STARTS = {
    "not JSON": ["{", "hello"],
    "unknown events": ['{"event": "hello"}', '{"event": "goodbye"}'],
    "media before start": [
        '{"event": "connected"}',
        '{"event": "media", "media": {"payload": "fw=="}}',
    ],
    "not an object": ["[1]", "7"],
    "an empty start": ['{"event": "start", "start": null}', '{"event": "start", "start": {}}'],
    "another provider": ['{"event": "connected"}', '{"start": {"streamId": "1", "callId": "2"}}'],
    "no call": ['{"event": "start", "start": {"streamSid": null, "callSid": null}}', "{}"],
}


@pytest.mark.parametrize("messages", WRONG_STARTS.values(), ids=WRONG_STARTS.keys())
async def test_a_call_with_a_wrong_handshake_is_closed(
    started_bot: BotProcess, messages: list[str]
) -> None:
    await until_free(started_bot)
    before = len(started_bot.log)
    async with TwilioCall(websocket(started_bot)) as call:
        for message in messages:
            await call.socket.send(message)
        assert await call.close_code() == 1013
    assert not call.received
    await until(lambda: "call refused" in started_bot.log[before:])
    added = started_bot.log[before:]
    assert "Traceback" not in added
    assert added.count("call refused") == 1


async def test_a_silent_connection_holds_no_slot(started_bot: BotProcess) -> None:
    await until_free(started_bot)
    before = len(started_bot.log)
    async with TwilioCall(websocket(started_bot)) as call:
        assert await call.close_code() == 1013
    await until(lambda: "the caller did not connect within" in started_bot.log[before:])


async def test_wrong_messages_in_a_call_are_ignored(bot: BotProcess) -> None:
    async with calling(bot) as call:
        for message in ("{", '{"event": "hello"}', '{"event": "media"}', '{"event": "dtmf"}', "{}"):
            await call.socket.send(message)
        await call.media(b"")
        await call.start()
        await call.talk(tone(2.0, RATE))
    assert_real_time(call, 2.0)


async def test_a_message_that_is_not_an_object_ends_only_its_call(
    bot: BotProcess, api: RestApi
) -> None:
    api.requests.clear()
    async with calling(bot) as good, calling(bot) as bad:
        talking = asyncio.create_task(good.talk(tone(2.0, RATE)))
        await bad.socket.send("[1]")
        await bad.close_code()
        await talking
    assert_real_time(good, 2.0)
    # Twilio still has the caller connected, so the bot ends the call through the REST API.
    secret = base64.b64encode(f"{ACCOUNT}:{TOKEN}".encode()).decode()
    path = f"/2010-04-01/Accounts/{ACCOUNT}/Calls/{bad.call_sid}.json"
    assert api.requests == [(path, f"Basic {secret}", "Status=completed")]


async def test_each_caller_hears_only_their_own_agent() -> None:
    """With an engine that repeats its input."""
    arguments = [*OPTIONS, "--max-sessions", "2"]
    with BotProcess("tests.bots.loopback_assistant", *arguments, **CREDENTIALS) as bot:
        async with calling(bot) as low, calling(bot) as high:
            await asyncio.gather(
                low.talk(tone(3.0, RATE, 500.0)), high.talk(tone(3.0, RATE, 1_200.0))
            )
    for call, hertz in ((low, 500.0), (high, 1_200.0)):
        assert_real_time(call, 3.0)
        sound = call.audio[RATE : 2 * RATE].astype(np.float64)
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
        near = np.abs(np.fft.rfftfreq(len(sound), 1 / RATE) - hertz) <= 5
        assert spectrum[near].sum() / spectrum.sum() > 0.99
