"""A WebRTC caller who floods its bot: datagrams and messages are dropped, the call goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection

from pipecat_personaplex.talk import webrtc_limits
from pipecat_personaplex.talk.webrtc import prepare_caller
from pipecat_personaplex.talk.webrtc_limits import limit_caller
from tests.helpers.logs import LogRecords, recorded

pytestmark = pytest.mark.realtime


class Bot:
    """Pipecat's side of a connection, which records the messages that arrive.

    Attributes:
        connection: The connection.
        messages: Messages that have reached Pipecat's handler.
    """

    def __init__(self) -> None:
        self.connection = SmallWebRTCConnection()
        self.messages: list[Any] = []

    async def answer(self, sdp: str) -> dict[str, Any]:
        await self.connection.initialize(sdp, "offer")
        prepare_caller(self.connection)

        @self.connection.event_handler("app-message")  # type: ignore[untyped-decorator]
        async def on_app_message(connection: object, message: Any) -> None:
            self.messages.append(message)

        answer: dict[str, Any] = self.connection.get_answer()
        return answer


@asynccontextmanager
async def called(bot: Bot) -> AsyncIterator[tuple[RTCPeerConnection, Any]]:
    """A caller with an open data channel."""
    peer = RTCPeerConnection()
    channel = peer.createDataChannel("rtvi-ai")
    opened = asyncio.Event()
    channel.on("open", opened.set)
    peer.addTrack(AudioStreamTrack())
    await peer.setLocalDescription(await peer.createOffer())
    answer = await bot.answer(peer.localDescription.sdp)
    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
    await bot.connection.connect()
    try:
        await asyncio.wait_for(opened.wait(), 15)
        yield peer, channel
    finally:
        await peer.close()
        await bot.connection.disconnect()


@pytest.fixture
def warnings_logged() -> Iterator[LogRecords]:
    with recorded("WARNING") as log:
        yield log


async def until(condition: Any) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_messages_are_dropped_beyond_their_rate_and_size(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: LogRecords
) -> None:
    monkeypatch.setattr(webrtc_limits, "MESSAGES_PER_SECOND", 10.0)
    monkeypatch.setattr(webrtc_limits, "MESSAGES_AT_ONCE", 20.0)
    bot = Bot()
    async with called(bot) as (_, channel):
        begun = time.monotonic()
        channel.send('{"type": "large", "x": "' + "x" * 70_000 + '"}')
        for number in range(200):
            channel.send(f'{{"type": "flood", "number": {number}}}')
        await until(lambda: len(bot.messages) >= 20)

        def another_arrives() -> bool:
            channel.send('{"type": "later"}')
            return bot.messages[-1]["type"] == "later"

        await until(another_arrives)
        passed = time.monotonic() - begun
    kinds = [message["type"] for message in bot.messages]
    assert "large" not in kinds and len(kinds) <= 21 + 10 * passed
    assert len(warnings_logged.containing("too many or too large messages")) == 1


async def test_datagrams_are_dropped_beyond_their_rate(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: LogRecords
) -> None:
    bot = Bot()
    async with called(bot) as (peer, _):
        transport: Any = peer.getTransceivers()[0].receiver.transport.transport
        dtls: Any = bot.connection.pc.getTransceivers()[0].receiver.transport
        before = dtls._RTCDtlsTransport__rx_packets
        begun = time.monotonic()
        for _ in range(3):
            for _ in range(1_000):
                await transport._send(b"\x80" * 100)
            await asyncio.sleep(0.05)
        await until(lambda: len(warnings_logged.containing("too many datagrams")))
        await asyncio.sleep(0.2)
        passed = time.monotonic() - begun
        assert dtls._RTCDtlsTransport__rx_packets - before <= 1_001 + 500 * passed
        assert bot.connection.is_connected()


async def test_messages_that_never_end_end_the_call(warnings_logged: LogRecords) -> None:
    bot = Bot()
    async with called(bot):
        assert bot.connection.pc.sctp is not None
        bot.connection.pc.sctp._advertised_rwnd = -(257 << 10)  # what such messages leave
        await until(lambda: not bot.connection.is_connected())
    assert len(warnings_logged.containing("messages that never end")) == 1


async def test_many_channels_end_the_call(warnings_logged: LogRecords) -> None:
    bot = Bot()
    async with called(bot) as (peer, _):
        for number in range(12):
            peer.createDataChannel(f"{number}")
        await until(lambda: not bot.connection.is_connected())
    assert len(warnings_logged.containing("more than 8 data channels")) == 1


async def test_a_connection_that_is_made_anew_is_limited_again() -> None:
    bot = Bot()
    async with called(bot):
        again = RTCPeerConnection()
        again.addTrack(AudioStreamTrack())
        await again.setLocalDescription(await again.createOffer())
        await bot.connection.renegotiate(again.localDescription.sdp, "offer", restart_pc=True)
        receiver: Any = bot.connection.pc.getTransceivers()[0].receiver
        assert receiver.transport.transport._recv.__name__ == "limited"
        assert receiver._RTCRtpReceiver__jitter_buffer.capacity == 4
        await again.close()


def test_a_change_of_aiortc_is_reported(warnings_logged: LogRecords) -> None:
    async def limit() -> None:
        limit_caller(object())  # type: ignore[arg-type]

    asyncio.run(limit())
    assert len(warnings_logged.containing("datagrams and messages are not limited")) == 1
