"""Calls over a WebSocket, for browsers whose WebRTC does not get through."""

from __future__ import annotations

import json

from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InputTransportMessageFrame,
    OutputAudioRawFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
)
from pipecat.serializers.base_serializer import FrameSerializer
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from starlette.websockets import WebSocket

from pipecat_personaplex.constants import SAMPLE_RATE

MAX_MESSAGE_BYTES = 64 << 10
"""Largest message of a page: audio comes in pieces of 20 ms, and a text in a few kilobytes."""


class PageSerializer(FrameSerializer):
    """Binary messages are PCM, 16 bits, mono, 24 kHz; text messages are RTVI.

    Example::

        params = FastAPIWebsocketParams(serializer=PageSerializer())
    """

    async def serialize(self, frame: Frame) -> str | bytes | None:
        """The message for a frame; None for frames that are not sent."""
        match frame:
            case OutputAudioRawFrame():
                return frame.audio
            case OutputTransportMessageFrame() | OutputTransportMessageUrgentFrame():
                return json.dumps(frame.message)
        return None

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """The frame of a message; None for one that is not valid."""
        if isinstance(data, bytes):
            return InputAudioRawFrame(data[: len(data) & ~1], SAMPLE_RATE, 1)
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return InputTransportMessageFrame(message) if isinstance(message, dict) else None


def socket_transport(websocket: WebSocket) -> BaseTransport:
    """Create the transport of a call.

    Args:
        websocket: An accepted connection.
    """
    params = FastAPIWebsocketParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        audio_out_10ms_chunks=4,
        audio_out_auto_silence=False,
        audio_out_end_silence_secs=0,
        serializer=PageSerializer(),
        allowed_origins=[],  # the application has checked the origin
    )
    return FastAPIWebsocketTransport(websocket, params)
