"""How calls come in: each transport with its own rates and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from loguru import logger
from pipecat.runner.types import (
    DailyRunnerArguments,
    RunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams

from pipecat_personaplex.constants import SAMPLE_RATE

# Telephone audio. Pipecat's resamplers hold back up to 150 ms, so every pipeline runs at the rate
# of its transport, and the service converts.
_RATES = {"webrtc": SAMPLE_RATE, "daily": SAMPLE_RATE, "twilio": 8_000}

# Twilio says who calls at once.
_HANDSHAKE_SECONDS = 10.0


def transport_of(runner_args: RunnerArguments) -> str:
    """The name of the transport that a call comes in on; empty for one that no bot serves."""
    match runner_args:
        case SmallWebRTCRunnerArguments():
            return "webrtc"
        case DailyRunnerArguments():
            return "daily"
        case WebSocketRunnerArguments(transport_type=None):
            return "twilio"
    return ""


async def open_transport(runner_args: RunnerArguments) -> BaseTransport:
    """The transport of a call.

    Raises:
        ValueError: What came in is not a call, or says nothing; it would hold a line for ever.
    """
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            return await create_transport(runner_args, transport_params())
    except TimeoutError:
        raise ValueError(f"no call began within {_HANDSHAKE_SECONDS:.0f} s") from None
    except (AttributeError, KeyError, TypeError) as error:
        # Pipecat does not look at what a stranger's WebSocket says before it reads it.
        raise ValueError(f"it did not begin as a call does: {error}") from error


def sample_rate(transport: str) -> int:
    """The rate, in and out, of a pipeline behind this transport."""
    return _RATES[transport]


def shorten_microphone_buffer(connection: Any) -> None:
    """Have aiortc hold back 20 ms of the caller's audio instead of 80.

    It also makes a lost packet cost what it lasts: the longer buffer stops for 300 ms and stays
    late. aiortc offers no option for it, so where its insides have changed it stays as it is.

    Args:
        connection: A ``SmallWebRTCConnection`` that is not connected yet.
    """
    try:
        from aiortc.jitterbuffer import JitterBuffer

        for transceiver in connection.pc.getTransceivers():
            if transceiver.kind == "audio":
                name = "_RTCRtpReceiver__jitter_buffer"
                getattr(transceiver.receiver, name)  # else a new attribute would come of it
                setattr(transceiver.receiver, name, JitterBuffer(capacity=4, prefetch=1))
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("the microphone's buffer stays at 80 ms: {}", error)


def transport_params() -> dict[str, Callable[[], TransportParams]]:
    """What ``create_transport`` needs to know.

    A chunk must divide the model's 80 ms, or a remainder is left waiting for the next frame.
    Silence that the output inserts whenever it starves would never be taken back: a full-duplex
    service sends audio all the time, so the output had better wait.
    """
    return {"webrtc": _webrtc, "daily": _daily, "twilio": _twilio}


def _webrtc() -> TransportParams:
    return TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        audio_out_10ms_chunks=4,
        audio_out_auto_silence=False,
        audio_out_end_silence_secs=0,
    )


def _daily() -> TransportParams:
    # Daily's client is an extra, and a large one.
    from pipecat.transports.daily.transport import DailyParams

    return DailyParams(
        audio_in_enabled=True,
        # Everybody in the room, mixed: a model with one ear cannot follow one track per person.
        audio_in_user_tracks=False,
        audio_out_enabled=True,
        audio_out_10ms_chunks=4,
        audio_out_auto_silence=False,
        audio_out_end_silence_secs=0,
        camera_out_enabled=False,
    )


def _twilio() -> TransportParams:
    return FastAPIWebsocketParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        # Twilio's own 20 ms.
        audio_out_10ms_chunks=2,
        audio_out_end_silence_secs=0,
    )
