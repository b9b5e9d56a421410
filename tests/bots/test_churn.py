"""Memory of a bot over many calls.

pytest -m measurement -s tests/bots/test_churn.py      # about 10 minutes
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from websockets.exceptions import WebSocketException

from tests.attack.victim import memory_mib
from tests.golden_data import CHECKPOINT
from tests.helpers.bots import BotProcess, receive_audio, webrtc_caller
from tests.helpers.telephone import CREDENTIALS, OPTIONS, TwilioCall

# A real engine: the one that repeats its input stores all of it for other tests.
BOT = ("bots.assistant", "--model", str(CHECKPOINT), "--device", "cpu", "--max-sessions", "4")
CALLS, WARM_UP, AT_ONCE = 1_000, 200, 2  # a fifth warms up, as in tests/attack/test_churn.py
_ATTEMPTS = 5


class PatientBot(BotProcess):
    start_seconds = 900.0  # a machine with other work may stop the process for minutes


async def telephone_call(bot: BotProcess, address: str) -> None:
    async with TwilioCall(f"{bot.url.replace('http', 'ws')}/ws", address) as call:
        await call.answer()
        await call.heard(0.3)
        await call.stop()


async def browser_call(bot: BotProcess, address: str) -> None:
    headers = {"X-Forwarded-For": address}
    async with aiohttp.ClientSession(bot.url, headers=headers) as http, webrtc_caller() as (p, o):
        async with http.post("/api/offer", json=o) as response:
            assert response.status == 200, await response.text()
            await receive_audio(p, await response.json(), 15)


async def patiently(call: Callable[[], Awaitable[None]]) -> None:
    """Make a call again that found no time, such as on a machine that was stopped meanwhile."""
    for attempt in range(_ATTEMPTS):
        try:
            await call()
            return
        except (TimeoutError, ConnectionError, WebSocketException):
            if attempt == _ATTEMPTS - 1:
                raise
            await asyncio.sleep(1.0)


async def make_calls(bot: BotProcess, transport: str, calls: int) -> None:
    """Make calls, a few at once and within the rate at which a bot lets calls start."""
    one_call = telephone_call if transport == "twilio" else browser_call
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            await asyncio.gather(
                patiently(lambda address=address: one_call(bot, address)),  # type: ignore[misc]
                asyncio.sleep(AT_ONCE / 4.5),
            )

    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    await asyncio.sleep(3.0)


async def churn(transport: str, calls: int, warm_up: int) -> tuple[float, float]:
    """MiB after the first calls, and after all."""
    options = OPTIONS if transport == "twilio" else ()
    with PatientBot(*BOT, *options, **CREDENTIALS, OMP_NUM_THREADS="1") as bot:
        await make_calls(bot, transport, warm_up)
        before = memory_mib(bot.pid)
        await make_calls(bot, transport, calls - warm_up)
        after = memory_mib(bot.pid)
        assert "Traceback" not in bot.log
        assert bot.log.count("call ended") == bot.log.count("call accepted") >= calls
    print(f"\n{transport}: {before:.1f} MiB after {warm_up} calls, {after:.1f} after {calls}")
    return before, after


@pytest.mark.measurement
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("transport", ["twilio", "webrtc"])
async def test_a_thousand_calls_leave_no_memory(transport: str) -> None:
    before, after = await churn(transport, CALLS, WARM_UP)
    assert after <= before * 1.01
