"""Bounds what a WebRTC caller may send: datagrams, and messages of the data channel.

Each datagram is decrypted on the event loop that all calls share, and each message passes the
pipeline. aiortc limits neither, so private attributes are replaced. If that fails, calls go on
without these limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from loguru import logger

from pipecat_personaplex.asgi.token_bucket import TokenBucket
from pipecat_personaplex.asgi.websocket_limit import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection

DATAGRAMS_PER_SECOND, DATAGRAMS_AT_ONCE = 500.0, 1000.0
"""Audio is 50 datagrams a second, a camera 200. After a stall, a second of them arrives at once."""
MESSAGES_PER_SECOND, MESSAGES_AT_ONCE = 50.0, 200.0

# Bytes of incomplete messages, beyond those that a client may have sent before they are confirmed.
_MAX_UNREAD_BYTES = 256 << 10
_MAX_CHANNELS = 8


def limit_caller(connection: SmallWebRTCConnection) -> None:
    """Drop what a caller sends beyond the limits; call this before the connection is made.

    Args:
        connection: The caller's connection, whose offer has been read.
    """
    try:
        _Caller(connection).limit()
    except (AttributeError, TypeError) as error:
        logger.warning("a caller's datagrams and messages are not limited: {}", error)


class _Caller:
    """What one caller has sent."""

    def __init__(self, connection: Any):
        self._connection = connection
        self._time = asyncio.get_running_loop().time
        now = self._time()
        self._datagrams = TokenBucket(DATAGRAMS_PER_SECOND, DATAGRAMS_AT_ONCE, now)
        self._messages = TokenBucket(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE, now)
        self._channels = 0
        self._warned: set[str] = set()
        self._ending: asyncio.Task[None] | None = None

    def limit(self) -> None:
        """Put the limits in front of aiortc's and Pipecat's handlers."""
        pc = self._connection.pc
        users = [transceiver.receiver for transceiver in pc.getTransceivers()]
        if pc.sctp is not None:
            users.append(pc.sctp)
        # Media and messages usually share one transport.
        for transport in {id(u.transport.transport): u.transport.transport for u in users}.values():
            transport._recv = self._limited_receive(transport._recv)
        pc.on("datachannel", self._add_channel)

    def _limited_receive(self, receive: Callable[[], Awaitable[bytes]]) -> Any:
        async def limited() -> bytes:
            while True:
                data = await receive()
                if self._unread_bytes() > _MAX_UNREAD_BYTES:
                    self._end("messages that never end")
                elif self._datagrams.take(self._time()):
                    return data
                else:
                    self._warn("too many datagrams; they are dropped")

        return limited

    def _unread_bytes(self) -> int:
        """Bytes of incomplete messages beyond the window that the caller was granted."""
        sctp = self._connection.pc.sctp
        return 0 if sctp is None else -int(sctp._advertised_rwnd)

    def _add_channel(self, channel: Any) -> None:
        self._channels += 1
        if self._channels > _MAX_CHANNELS:
            self._end(f"more than {_MAX_CHANNELS} data channels")
        emit = channel.emit

        def limited(event: str, *args: Any, **kwargs: Any) -> Any:
            if event != "message":
                return emit(event, *args, **kwargs)
            if len(args[0]) <= MAX_MESSAGE_BYTES and self._messages.take(self._time()):
                return emit(event, *args, **kwargs)
            self._warn("too many or too large messages; they are dropped")
            return False

        channel.emit = limited

    def _warn(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("a caller sends {}", what)

    def _end(self, what: str) -> None:
        """End the call of a client that is broken or hostile."""
        if self._ending is None:
            self._warn(f"{what}; its call ends")
            self._ending = asyncio.create_task(self._connection.disconnect())
