"""The transports that bots serve, each with its sample rate and settings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from pipecat.runner.types import (
    DailyRunnerArguments,
    RunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.transports.websocket.fastapi import (
    FastAPIWebsocketParams,
    FastAPIWebsocketTransport,
)

from bots.twilio import CallerSerializer, read_handshake
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.talk.webrtc import webrtc_params

# Sample rate of each transport, in Hz. Pipecat's resamplers add up to 150 ms of delay, so a
# pipeline runs at the rate of its transport and the service resamples.
_RATES = {"webrtc": SAMPLE_RATE, "daily": SAMPLE_RATE, "twilio": 8_000}


def transport_of(runner_args: RunnerArguments) -> str:
    """The name of a call's transport; empty for a transport that bots do not serve."""
    match runner_args:
        case SmallWebRTCRunnerArguments():
            return "webrtc"
        case DailyRunnerArguments():
            return "daily"
        case WebSocketRunnerArguments(transport_type=None):
            return "twilio"
    return ""


async def open_transport(runner_args: RunnerArguments) -> BaseTransport:
    """Complete the handshake of a call and create its transport.

    This may wait for ever: a client need not send anything. The room of a Daily call is joined
    later, by its pipeline.

    Raises:
        ValueError: The client does not follow its protocol, or cannot be reached.
    """
    params = transport_params()[transport_of(runner_args)]
    match runner_args:
        case SmallWebRTCRunnerArguments():
            await _connected(runner_args.webrtc_connection)
        case WebSocketRunnerArguments():
            account = os.environ.get("TWILIO_ACCOUNT_SID", "")
            start = await read_handshake(runner_args.websocket, account)
            settings = _twilio()
            settings.serializer = CallerSerializer(start)
            return FastAPIWebsocketTransport(runner_args.websocket, settings)
    return await create_transport(runner_args, {transport_of(runner_args): params})


async def _connected(connection: Any) -> None:
    """Wait until a ``SmallWebRTCConnection`` is connected."""
    if not any(transceiver.kind == "audio" for transceiver in connection.pc.getTransceivers()):
        raise ValueError("the offer has no audio")
    changed = asyncio.Event()
    connection.pc.on("connectionstatechange", changed.set)
    while (state := connection.pc.connectionState) != "connected":
        if state in ("failed", "closed"):
            raise ValueError(f"the connection to the browser has {state}")
        changed.clear()
        await changed.wait()


def sample_rate(transport: str) -> int:
    """Sample rate in Hz, in and out, of a pipeline with this transport."""
    return _RATES[transport]


def transport_params() -> dict[str, Callable[[], TransportParams]]:
    """Settings of each transport, for ``create_transport``.

    - The output's chunks must divide the model's 80 ms frame; else the rest of each frame waits
      for the next one.
    - The output inserts no silence when its queue is empty. The service sends audio all the time,
      so each inserted piece would delay the rest of the call by its length.
    """
    return {"webrtc": webrtc_params, "daily": _daily, "twilio": _twilio}


def _daily() -> TransportParams:
    # Daily's client is a large optional dependency.
    from pipecat.transports.daily.transport import DailyParams

    return DailyParams(
        audio_in_enabled=True,
        # One mix of all participants: the model has a single input stream.
        audio_in_user_tracks=False,
        audio_out_enabled=True,
        audio_out_10ms_chunks=4,
        audio_out_auto_silence=False,
        audio_out_end_silence_secs=0,
        camera_out_enabled=False,
    )


def _twilio() -> FastAPIWebsocketParams:
    return FastAPIWebsocketParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        # Twilio's packets are 20 ms.
        audio_out_10ms_chunks=2,
        audio_out_end_silence_secs=0,
    )
