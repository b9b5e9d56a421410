"""Bots as strangers find them: real processes, real connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp
import pytest
from aiortc import RTCPeerConnection
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.helpers.bots import (
    BotProcess,
    Messages,
    connect_caller,
    receive_audio,
    run_bot,
    webrtc_caller,
)
from tests.helpers.telephone import CREDENTIALS, OPTIONS, PUBLIC, TwilioCall

pytestmark = pytest.mark.realtime

LOOPBACK = "tests.bots.loopback_assistant"
PHONE_NUMBER = "+4930123456"
SECRET = "my card is 4711"


async def logged(bot: BotProcess, text: str, times: int = 1) -> None:
    async with asyncio.timeout(20):
        while bot.log.count(text) < times:  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.05)


async def status_of(http: aiohttp.ClientSession, offer: dict[str, object]) -> int:
    """Post an offer until an address may start another call."""
    async with asyncio.timeout(20):
        while True:
            async with http.post("/api/offer", json=offer) as response:
                if response.status != 429:
                    return response.status
            await asyncio.sleep(0.2)


async def answered(http: aiohttp.ClientSession, offer: dict[str, str]) -> dict[str, str]:
    """Post an offer until the slot is free, and an address may start another call."""
    async with asyncio.timeout(20):
        while True:
            async with http.post("/api/offer", json=offer) as response:
                if response.status == 200:
                    answer: dict[str, str] = await response.json()
                    return answer
                assert response.status in (429, 503)
            await asyncio.sleep(0.3)


@pytest.fixture(scope="module")
def page() -> Iterator[BotProcess]:
    options = ("--max-sessions", "1", "--connect-seconds", "2", "--silent-seconds", "3")
    with BotProcess(LOOPBACK, *options) as bot:
        yield bot


@pytest.fixture(scope="module")
def telephone() -> Iterator[BotProcess]:
    with BotProcess(LOOPBACK, *OPTIONS, "--silent-seconds", "2", **CREDENTIALS) as bot:
        yield bot


class TestPage:
    async def test_an_offer_that_never_connects_holds_no_slot(self, page: BotProcess) -> None:
        async with aiohttp.ClientSession(page.url) as http, webrtc_caller() as (_, offer):
            without = "\r\n".join(
                line for line in offer["sdp"].splitlines() if not line.startswith("a=candidate")
            )
            ended = without + "\r\na=end-of-candidates\r\n"
            for sdp in (offer["sdp"], ended):
                async with http.post("/api/offer", json=offer | {"sdp": sdp}) as response:
                    assert response.status == 200
            async with webrtc_caller() as (peer, good):  # the only slot
                async with http.post("/api/offer", json=good) as response:
                    assert response.status == 200
                    await receive_audio(peer, await response.json())
        async with asyncio.timeout(10):
            while page.log.count("did not connect within 2 s") < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def test_a_caller_who_sends_no_audio_is_hung_up(self, page: BotProcess) -> None:
        peer = RTCPeerConnection()
        peer.addTransceiver("audio", direction="sendrecv")
        peer.createDataChannel("rtvi-ai")
        await peer.setLocalDescription(await peer.createOffer())
        offer = {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}
        try:
            async with aiohttp.ClientSession(page.url) as http:
                await connect_caller(peer, await answered(http, offer))
            await logged(page, "no audio from the caller for 3 s")
        finally:
            await peer.close()

    async def test_what_clients_send_is_not_logged(self, page: BotProcess) -> None:
        async with aiohttp.ClientSession(page.url) as http:
            personal = {"type": "offer", "request_data": {"from": PHONE_NUMBER}}
            for sdp, status in ((f"v=0\r\nm={SECRET}\r\n", 400), (SECRET, 200)):
                assert await status_of(http, personal | {"sdp": sdp}) == status
            await logged(page, "the offer has no audio")
            async with http.post("/start", data=SECRET) as response:
                assert response.status == 200
            async with http.post("/api/offer", json={"sdp": [SECRET]}) as response:
                assert response.status == 422
            messages: list[Messages] = []
            async with webrtc_caller(messages) as (peer, offer):
                await receive_audio(peer, await answered(http, offer))
                messages[0]._channel.send("{" + SECRET)
                messages[0]._channel.send(json.dumps({"label": SECRET, "type": "x", "id": "1"}))
                await messages[0].send("nonsense", "1", SECRET)
                await logged(page, "smallwebrtc.connection", 1)
                await logged(page, "rtvi.processor", 2)
        assert SECRET not in page.log and PHONE_NUMBER not in page.log
        assert "Traceback" not in page.log

    async def test_other_transports_do_not_exist(self, page: BotProcess) -> None:
        with pytest.raises(InvalidStatus, match="403"):
            async with connect(f"{page.url.replace('http', 'ws')}/ws", proxy=None):
                pass


class TestTelephone:
    async def test_unsigned_requests_are_refused(self, telephone: BotProcess) -> None:
        async with aiohttp.ClientSession(telephone.url) as http:
            for headers in ({}, {"X-Twilio-Signature": "x"}):
                async with http.post("/", data={"From": PHONE_NUMBER}, headers=headers) as response:
                    assert response.status == 403
        with pytest.raises(InvalidStatus, match="403"):
            async with connect(f"{telephone.url.replace('http', 'ws')}/ws", proxy=None):
                pass
        await logged(telephone, "no valid signature")
        assert PHONE_NUMBER not in telephone.log

    async def test_large_messages_and_floods_close_only_their_call(
        self, telephone: BotProcess
    ) -> None:
        url = f"{telephone.url.replace('http', 'ws')}/ws"
        async with TwilioCall(url) as large:
            assert not large.socket.protocol.extensions, "no compression"
            await large.socket.send("x" * 70_000)
            assert await large.close_code() == 1009
        async with TwilioCall(url) as flood:
            await flood.answer()
            with pytest.raises(ConnectionClosed):
                for index in range(20_000):
                    await flood.media(b"\xff" * 160, index)
            assert flood.socket.close_code in (1008, 1006)
        async with TwilioCall(url) as call:
            await call.answer()
            await call.heard(0.1)

    async def test_a_call_without_media_ends(self, telephone: BotProcess) -> None:
        async with TwilioCall(f"{telephone.url.replace('http', 'ws')}/ws") as call:
            await call.answer()
            await call.close_code()
        await logged(telephone, "no audio from the caller for 2 s")

    async def test_unsigned_requests_can_be_allowed_and_this_is_logged(self) -> None:
        with BotProcess(LOOPBACK, *OPTIONS, "--allow-unsigned", **CREDENTIALS) as bot:
            async with aiohttp.ClientSession(bot.url) as http, http.post("/") as response:
                assert f"wss://{PUBLIC}/ws" in await response.text()
            assert "anybody can start calls" in bot.log


def test_a_port_in_use_is_noticed_before_the_model_is_loaded(page: BotProcess) -> None:
    ended = run_bot(
        "bots.assistant", "--host", "127.0.0.1", "--port", str(page.port), "--model", "/nowhere"
    )
    assert ended.returncode == 2
    assert f"cannot listen at 127.0.0.1, port {page.port}" in ended.stderr
    assert "/nowhere" not in ended.stderr
