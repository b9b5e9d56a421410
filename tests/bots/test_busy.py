"""Callers are refused while all slots are in use."""

from __future__ import annotations

import asyncio

import aiohttp

from tests.helpers.bots import BotProcess, receive_audio, webrtc_caller
from tests.helpers.telephone import CREDENTIALS, OPTIONS, PUBLIC, TwilioCall, signed

LOOPBACK = "tests.bots.loopback_assistant"
WAIT = 15.0


async def test_a_browser_gets_503_with_retry_after() -> None:
    with BotProcess(LOOPBACK, "--max-sessions", "1") as bot:
        async with (
            aiohttp.ClientSession(bot.url) as http,
            webrtc_caller() as (first, first_offer),
            webrtc_caller() as (_, second_offer),
        ):
            async with http.post("/api/offer", json=first_offer) as response:
                assert response.status == 200
                answer = await response.json()
            await receive_audio(first, answer)

            for path, body in (("/start", {}), ("/api/offer", second_offer)):
                async with http.post(path, json=body) as response:
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) > 0
                    assert "every slot is in use" in (await response.json())["detail"]

            # The caller in the slot may renegotiate the connection, and the page is still served.
            await first.setLocalDescription(await first.createOffer())
            renewed = {"sdp": first.localDescription.sdp, "type": first.localDescription.type}
            renewed["pc_id"] = answer["pc_id"]
            async with http.post("/api/offer", json=renewed) as response:
                assert response.status == 200
            async with http.get("/client/") as response:
                assert response.status == 200

            await first.close()
            async with asyncio.timeout(WAIT):
                while True:
                    async with http.post("/start", json={}) as response:
                        if response.status == 200:
                            break
                    await asyncio.sleep(0.1)


async def test_a_telephone_caller_gets_a_busy_tone() -> None:
    with BotProcess(LOOPBACK, *OPTIONS, "--max-sessions", "1", **CREDENTIALS) as bot:
        webhook = signed(f"https://{PUBLIC}/")
        websocket = f"{bot.url.replace('http', 'ws')}/ws"
        async with aiohttp.ClientSession(bot.url) as http, TwilioCall(websocket) as call:
            async with http.post("/", headers=webhook) as response:
                assert f"wss://{PUBLIC}/ws" in await response.text()
            await call.answer()
            await call.heard(0.1)
            async with http.post("/", headers=webhook) as response:
                assert response.status == 200
                assert '<Reject reason="busy"/>' in await response.text()
            async with TwilioCall(websocket) as late:
                assert await late.close_code() == 1013
