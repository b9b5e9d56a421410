"""The transports that bots serve, each with its sample rate and settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

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
from pipecat_personaplex.talk.webrtc import webrtc_params

# Sample rate of each transport, in Hz. Pipecat's resamplers add up to 150 ms of delay, so a
# pipeline runs at the rate of its transport and the service resamples.
_RATES = {"webrtc": SAMPLE_RATE, "daily": SAMPLE_RATE, "twilio": 8_000}

# Twilio sends its handshake as soon as it has connected.
_HANDSHAKE_SECONDS = 10.0


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
    """Create the transport of a call; on the telephone, read Twilio's handshake first.

    Raises:
        ValueError: The handshake is not Twilio's, or did not arrive within 10 s. Without that
            limit a silent connection would hold its slot for ever.
    """
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            return await create_transport(runner_args, transport_params())
    except TimeoutError:
        raise ValueError(f"no handshake within {_HANDSHAKE_SECONDS:.0f} s") from None
    except (AttributeError, KeyError, TypeError) as error:
        # Pipecat reads the fields of the first messages without checking that they exist.
        raise ValueError(f"the handshake is not Twilio's: {error}") from error


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


def _twilio() -> TransportParams:
    return FastAPIWebsocketParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        # Twilio's packets are 20 ms.
        audio_out_10ms_chunks=2,
        audio_out_end_silence_secs=0,
    )
