"""The calls of a bot: how many, how wrong ones end, and how all end when the bot stops."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

import aiohttp
import pytest

from bots.assistant import TEACHER, converse
from bots.drive_thru import RESTAURANT
from bots.host import BotHost
from bots.options import BotParser
from tests import golden_data
from tests.helpers.bots import BotProcess, connect_caller, receive_audio, webrtc_caller
from tests.helpers.engines import FakeEngine
from tests.helpers.servers import eventually
from tests.helpers.telephone import CREDENTIALS, OPTIONS, TwilioCall

LOOPBACK = "tests.bots.loopback_assistant"
WAIT = 15.0


def parse(*arguments: str) -> argparse.Namespace:
    parser = BotParser("A bot.", "You are a bot.", lambda parsed: None)
    parser.add_argument("-t", "--transport")
    parser.add_argument("-x", "--proxy")
    parser.add_argument("-d", "--direct", action="store_true")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    return parser.parse_args(list(arguments))


def test_max_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def max_calls(slots: int, *arguments: str) -> int:
        host = BotHost("A bot.", converse, voice="NATF2", prompt="You are a bot.")
        host._engine, host._args = FakeEngine(slots), parse(*arguments)
        for active in range(99):
            host._active_calls = active
            if host.full:
                return active
        raise AssertionError("the host accepts any number of calls")

    monkeypatch.delenv("PERSONAPLEX_MAX_SESSIONS", raising=False)
    assert [max_calls(slots) for slots in (2, 8, 20)] == [2, 8, 8]
    assert max_calls(0) == 8, "NVIDIA's server does not report its number of slots"
    assert max_calls(20, "--max-sessions", "12") == 12
    monkeypatch.setenv("PERSONAPLEX_MAX_SESSIONS", "")
    assert max_calls(2) == 2


def test_the_roles_are_in_nvidias_words() -> None:
    assert RESTAURANT == golden_data.RESTAURANT.text_prompt
    assert TEACHER.startswith("You are a wise and friendly teacher.")


async def until_logged(bot: BotProcess, text: str, count: int) -> None:
    """Wait for lines of the log: the test receives them through a pipe."""
    await asyncio.to_thread(eventually, lambda: bot.log.count(text) == count)


async def test_a_connection_that_is_not_twilios_ends_alone() -> None:
    with BotProcess(LOOPBACK, *OPTIONS, **CREDENTIALS) as bot:
        async with TwilioCall(f"{bot.url.replace('http', 'ws')}/ws") as call:
            await call.socket.send('{"event": "hello"}')
            await call.socket.send('{"event": "world"}')
            assert await call.close_code() == 1013
        async with aiohttp.ClientSession(bot.url) as http, http.get("/status") as response:
            assert response.status == 200
        await until_logged(bot, "call refused", 1)
        assert "Traceback" not in bot.log


async def test_a_call_that_fails_unexpectedly_is_hung_up_and_others_are_served() -> None:
    with BotProcess("tests.bots.failing_assistant", *OPTIONS, **CREDENTIALS) as bot:
        for count in (1, 2):
            async with TwilioCall(f"{bot.url.replace('http', 'ws')}/ws") as call:
                await call.connected()
                await call.start()
                assert await call.close_code() == 1013
            await until_logged(bot, "KeyError: 'STT_KEY'", count)
        assert bot.log.count("call failed: client") == 2


async def test_sigterm_ends_running_calls() -> None:
    with BotProcess(LOOPBACK) as bot:
        async with aiohttp.ClientSession(bot.url) as http, webrtc_caller() as (peer, body):
            async with http.post("/api/offer", json=body) as response:
                await receive_audio(peer, await response.json())
            assert await asyncio.to_thread(bot.stop)


@pytest.mark.parametrize("state", ["answered", "accepted"])
async def test_sigterm_ends_a_call_that_is_being_set_up(state: str) -> None:
    """The first call of the bot: its offer is answered, or its pipeline does not run yet."""
    with BotProcess("tests.bots.slow_assistant") as bot:
        async with aiohttp.ClientSession(bot.url) as http, webrtc_caller() as (peer, body):
            async with http.post("/api/offer", json=body) as response:
                await connect_caller(peer, await response.json())
            if state == "accepted":
                await until_logged(bot, "call accepted", 1)
            assert await asyncio.to_thread(bot.stop), "the bot serves this caller for ever"
        assert "the bot is stopping" in bot.log
        assert ("call accepted" in bot.log) == (state == "accepted")
        assert "Traceback" not in bot.log


@pytest.mark.slow
def test_ctrl_c_leaves_no_report_of_leaks() -> None:
    """The libraries of the engine report objects that are not collected at the exit."""
    with BotProcess("bots.assistant", "--model", "nano", "--device", "cpu", fresh=True) as bot:
        os.kill(bot.pid, signal.SIGINT)
        bot._process.wait(WAIT)
        bot._reader.join(WAIT)
        assert "leaked" not in bot.log and "Traceback" not in bot.log
