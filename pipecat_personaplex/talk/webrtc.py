"""WebRTC as this model needs it: transport, microphone buffer, local addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loguru import logger
from pipecat.transports.base_transport import BaseTransport, TransportParams

from pipecat_personaplex.talk.webrtc_limits import limit_caller

if TYPE_CHECKING:
    from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection

_LOOPBACK = "127.0.0.1"


def webrtc_params() -> TransportParams:
    """Parameters of Pipecat's SmallWebRTC transport.

    - The output's chunks must divide the model's 80 ms frame; else the rest of each frame waits
      for the next one.
    - The output inserts no silence when its queue is empty. The service sends audio all the time,
      so each inserted piece would delay the rest of the call by its length.
    """
    return TransportParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        audio_out_10ms_chunks=4,
        audio_out_auto_silence=False,
        audio_out_end_silence_secs=0,
    )


def webrtc_transport(connection: SmallWebRTCConnection) -> BaseTransport:
    """Create the transport of a call.

    Args:
        connection: The browser's connection, not connected yet.
    """
    # Imported here: bots without WebRTC use the other functions of this module.
    from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport

    prepare_caller(connection)
    return SmallWebRTCTransport(connection, webrtc_params())


def prepare_caller(connection: Any) -> None:
    """Shorten the microphone's buffer and limit what the caller may send.

    A client may have the connection made anew during the call (``restart_pc``); then both follow
    again.

    Args:
        connection: A ``SmallWebRTCConnection`` whose offer has been read.
    """
    shorten_microphone_buffer(connection)
    limit_caller(connection)
    renegotiate = connection.renegotiate

    async def renegotiated(sdp: str, type: str, restart_pc: bool = False) -> None:
        await renegotiate(sdp, type, restart_pc)
        if restart_pc:
            shorten_microphone_buffer(connection)
            limit_caller(connection)

    connection.renegotiate = renegotiated


def shorten_microphone_buffer(connection: Any) -> None:
    """Make aiortc buffer 20 ms of the caller's audio instead of 80 ms.

    After a lost packet, aiortc's default buffer stalls for 300 ms and the call stays late by as
    much; the short one loses only that packet. aiortc has no option for this, so a private
    attribute is replaced. If that fails, the default buffer stays.

    Args:
        connection: A ``SmallWebRTCConnection`` that is not connected yet.
    """
    try:
        from aiortc.jitterbuffer import JitterBuffer

        for transceiver in connection.pc.getTransceivers():
            if transceiver.kind == "audio":
                name = "_RTCRtpReceiver__jitter_buffer"
                getattr(transceiver.receiver, name)  # raises if aiortc has renamed it
                setattr(transceiver.receiver, name, JitterBuffer(capacity=4, prefetch=1))
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("the microphone buffer stays at 80 ms: {}", error)


def offer_loopback() -> None:
    """Make aiortc offer 127.0.0.1 to a browser on this machine, besides its other addresses.

    aioice leaves that address out. Without a network there is no other, and the call could not
    connect. aioice has no option for this, so a function of its module is replaced once. If that
    fails, calls on this machine need a network interface.
    """
    try:
        from aioice import ice

        others = ice.get_host_addresses
        if getattr(others, "offers_loopback", False):
            return

        def with_loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
            addresses: list[str] = others(use_ipv4, use_ipv6)
            return [*addresses, _LOOPBACK] if use_ipv4 else addresses

        with_loopback.offers_loopback = True  # type: ignore[attr-defined]
        ice.get_host_addresses = with_loopback
    except (ImportError, AttributeError) as error:
        logger.warning(
            "127.0.0.1 cannot be offered to browsers, so calls on this machine need a network "
            "interface: {}",
            error,
        )
