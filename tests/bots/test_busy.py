"""Callers are refused while all slots are in use."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from tests.helpers.bots import BotProcess, receive_audio, webrtc_caller

LOOPBACK = "tests.bots.loopback_assistant"
TWILIO = {"TWILIO_ACCOUNT_SID": "AC0", "TWILIO_AUTH_TOKEN": "secret"}
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
    options = ("-t", "twilio", "-x", "bot.example", "--max-sessions", "1")
    with BotProcess(LOOPBACK, *options, **TWILIO) as bot:
        async with aiohttp.ClientSession(bot.url) as http:
            async with http.post("/") as response:
                assert "wss://bot.example/ws" in await response.text()
            async with http.ws_connect("/ws") as call:
                start = {"streamSid": "MZ0", "callSid": "CA0", "customParameters": {}}
                await call.send_json({"event": "connected", "protocol": "Call"})
                await call.send_json({"event": "start", "streamSid": "MZ0", "start": start})
                media = json.loads(await asyncio.wait_for(call.receive_str(), WAIT))
                assert media["event"] == "media"

                async with http.post("/") as response:
                    assert response.status == 200
                    assert '<Reject reason="busy"/>' in await response.text()
                async with http.ws_connect("/ws") as late:
                    message = await asyncio.wait_for(late.receive(), WAIT)
                    assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1013
