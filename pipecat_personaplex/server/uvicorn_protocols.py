"""uvicorn's protocol classes with protection against clients that are slow, silent or too many.

uvicorn creates one ``_Http`` object for each connection; an upgrade passes the connection on to a
``_WebSocket`` object. uvicorn's own classes wait without a limit and process whatever arrives. Each
override below answers one attack or fault:

=====================================  ==========================================================
``_Http._watch``, ``_check``           A client that connects and sends nothing, sends its request
                                       byte by byte (slowloris), or does not read the response.
``_ClosingTransport.close``            A TLS client that is refused and never ends its TLS session.
``_WebSocket.data_received``           A request line that is too long: uvicorn never responds. And
                                       one read with thousands of frames, which would block the
                                       event loop: it is split, and the rest dropped after a limit.
``handle_text``, ``handle_bytes``,     Floods of small messages, of continuation frames, of pings
``handle_cont``, ``handle_pong``       and of pongs.
``handle_ping``                        Pings from a client that does not read the pongs: they would
                                       fill the memory.
``send_receive_event_to_app``          Text that is not UTF-8: uvicorn logs a traceback for each.
``_WebSocket.send``                    Refused upgrades: uvicorn logs an error for each.
``keepalive_timeout``, ``run_asgi``    A client that stopped reading: a socket with unsent data
                                       would stay open after ``close``.
=====================================  ==========================================================
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.protocol import State

from pipecat_personaplex.server.connection_limits import ConnectionLimits
from pipecat_personaplex.server.token_bucket import TokenBucket

_CLOSE_SECONDS = 5.0
_SLICE_BYTES = 4096
_MAX_UNREAD_BYTES = 256 << 10
_CONTROL_FRAMES_PER_SECOND = 100.0
_MESSAGES_PER_SECOND = 1000.0
"""Limit for one client. A usual client sends at most 50 a second, and 200 at once on a resume."""
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _ClosingTransport:
    """A transport whose ``close`` may be called twice, with ``abort`` still working afterwards.

    uvicorn calls ``close`` twice on a refused connection. asyncio's TLS transport forgets its
    connection at the second call, and ``abort`` then does nothing.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()


HTTP_USES = ("cycle", "loop", "transport", "handle_websocket_upgrade")
"""Attributes of uvicorn's class that ``_Http`` uses, and ``response_complete`` of its ``cycle``; a
test checks that they exist."""


class _Http(H11Protocol):
    """An HTTP connection, which is aborted when it makes no progress.

    Attributes:
        seconds: Time in which a request must arrive, and its response be read.
        limits: Notified when the connection becomes a WebSocket.
    """

    seconds: float
    limits: ConnectionLimits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _ClosingTransport(transport)))
        self._watch()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._check, self._progress())

    def _progress(self) -> tuple[object, ...]:
        # ``cycle`` is uvicorn's current request; each request has a new one.
        cycle = self.cycle
        return cycle, cycle is None or cycle.response_complete, self.transport.is_closing()

    def _check(self, before: tuple[object, ...]) -> None:
        if self._progress() == before:
            self.transport.abort()
        else:
            self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._timer.cancel()
        self.limits.upgraded(self.transport.get_extra_info("socket").fileno())
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)


WEBSOCKET_USES = (
    *("close_sent", "conn", "curr_msg_data_type", "frames", "handshake_complete"),
    *("handshake_initiated", "loop", "transport"),
    *("handle_bytes", "handle_cont", "handle_parser_exception", "handle_ping", "handle_pong"),
    *("handle_text", "keepalive_timeout", "run_asgi", "send_receive_event_to_app"),
)
"""Attributes of uvicorn's class that ``_WebSocket`` uses; a test checks that they exist."""


class _WebSocket(WebSocketsSansIOProtocol):
    """A WebSocket, which is aborted when its client floods the server or does not read."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        now = self.loop.time()
        control, messages = _CONTROL_FRAMES_PER_SECOND, _MESSAGES_PER_SECOND
        self._control_frames = TokenBucket(control, control, now)
        self._messages = TokenBucket(messages, messages, now)

    def data_received(self, data: bytes) -> None:
        # The first data is a complete request. If websockets rejects it, such as for a header line
        # of more than 8 KiB, uvicorn is not notified and the client would wait for ever.
        if not self.handshake_initiated:
            super().data_received(data)
            if not self.handshake_initiated and not self.transport.is_closing():
                self.transport.write(_BAD_REQUEST)
                self.transport.close()
            return
        # In slices, because uvicorn parses all frames of its argument without a check in between.
        for start in range(0, len(data), _SLICE_BYTES):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + _SLICE_BYTES])

    def _over_limit(self, bucket: TokenBucket) -> bool:
        if bucket.take(self.loop.time()):
            return False
        self.transport.abort()
        return True

    def _message_over_limit(self, frame: Frame) -> bool:
        # An empty message counts as a control frame: no client needs many of them.
        return self._over_limit(self._messages if frame.data else self._control_frames)

    def handle_text(self, event: Frame) -> None:
        if not self._message_over_limit(event):
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if not self._message_over_limit(event):
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if not self._over_limit(self._control_frames):
            super().handle_cont(event)

    def handle_pong(self, event: Frame) -> None:
        if not self._over_limit(self._control_frames):
            super().handle_pong(event)

    def handle_ping(self) -> None:
        if self._over_limit(self._control_frames):
            return
        # Messages wait until the client reads; pongs do not, and would accumulate in the buffer.
        if self.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # As uvicorn does, but without a traceback in the log.
                self.frames = []
                if self.conn.state is State.OPEN:
                    self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        # A refusal completes the handshake; otherwise uvicorn logs that the application did not.
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = self.handshake_complete or not message.get("more_body")

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)


WEBSOCKET: type[WebSocketsSansIOProtocol] = _WebSocket


def http_protocol(seconds: float, limits: ConnectionLimits) -> type[H11Protocol]:
    """Return the class of a server's connections, until they become WebSockets.

    Args:
        seconds: As ``_Http.seconds``.
        limits: As ``_Http.limits``.
    """
    return type("Http", (_Http,), {"seconds": seconds, "limits": limits})
