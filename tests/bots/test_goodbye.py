"""A caller hears the goodbye as it is spoken, and one who does not wait frees the slot at once."""

from __future__ import annotations

import asyncio
import re
import time

import aiohttp
import pytest

from tests.helpers.bots import BotProcess, connect_caller, webrtc_caller
from tests.helpers.telephone import CREDENTIALS, OPTIONS, TwilioCall

pytestmark = pytest.mark.realtime

MODULE = "tests.bots.goodbye_assistant"


async def call_ended(bot: BotProcess) -> str:
    """The line about the end of the call."""
    async with asyncio.timeout(20):
        while not (found := re.search("call ended .*", bot.log)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found[0]


async def test_in_a_browser() -> None:
    with BotProcess(MODULE) as bot:
        async with aiohttp.ClientSession(bot.url) as http, webrtc_caller() as (peer, offer):
            async with http.post("/api/offer", json=offer) as response:
                track = await connect_caller(peer, await response.json())
            begun = time.monotonic()
            for _ in range(50):
                await track.recv()
            assert time.monotonic() - begun < 5.0, "the audio does not wait for the end"
            assert "call ended" not in bot.log
            await peer.close()
            begun = time.monotonic()
            line = await call_ended(bot)
        assert time.monotonic() - begun < 3.0, line
        assert "the caller hung up" in line


async def test_on_the_telephone() -> None:
    with BotProcess(MODULE, *OPTIONS, **CREDENTIALS) as bot:
        async with TwilioCall(f"{bot.url.replace('http', 'ws')}/ws") as call:
            await call.answer()
            await asyncio.wait_for(call.heard(1.0), 5.0)
            assert "call ended" not in bot.log
            begun = time.monotonic()
            await call.stop()
            line = await call_ended(bot)
        assert time.monotonic() - begun < 3.0, line
        assert "the caller hung up" in line
