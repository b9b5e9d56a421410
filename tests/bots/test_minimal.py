"""The README's single-file bot, as a real process with the model that it loads."""

from __future__ import annotations

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
                audio = await receive_audio(peer, await response.json(), frames=150)
    assert np.abs(audio).max() > 1_000, "the greeting, in the first three seconds"
