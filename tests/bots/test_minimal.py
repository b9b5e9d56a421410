"""The README's single-file bot, as a real process with the model that it loads."""

from __future__ import annotations

import asyncio

import aiohttp
import numpy as np

from tests.helpers.bots import BotProcess, receive_audio, webrtc_caller


async def test_a_browser_hears_the_agent() -> None:
    with BotProcess("bots.minimal", fresh=True) as bot:
        async with aiohttp.ClientSession(bot.url) as http, webrtc_caller() as (peer, offer):
            async with http.get("/client/") as page:
                assert page.status == 200
            async with http.post("/api/offer", json=offer) as response:
                assert response.status == 200
                answer = await response.json()
            await asyncio.sleep(1.0)  # a browser takes its time to connect
            assert "started with voice" not in bot.log
            audio = await receive_audio(peer, answer, frames=150)
            assert "started with voice" in bot.log
    assert np.abs(audio).max() > 1_000, "the greeting, in the first three seconds"
