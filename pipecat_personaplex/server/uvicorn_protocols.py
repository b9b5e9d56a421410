"""uvicorn's protocols, one a connection, for clients that are slow, silent, or too many."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.protocol import State

_CLOSE_SECONDS = 5.0
_SLICE_BYTES = 4096
_UNREAD_BYTES = 256 << 10
_CONTROL_FRAMES = 100.0
_MESSAGES = 1000.0
"""A second, of one client: real ones send 50, and 200 at once when they resume."""
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class TokenBucket:
    """So many a second, and as many at once (a token bucket).

    Args:
        per_second: How many.
        now: In seconds, of any clock.
    """

    def __init__(self, per_second: float, now: float):
        self._per_second = self._left = per_second
        self._then = now

    def take(self, now: float) -> bool:
        """Use one up; False if there is none left."""
        refilled = self._left + (now - self._then) * self._per_second
        self._left, self._then = min(refilled, self._per_second), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class _Transport:
    """A transport that may be closed twice, as uvicorn does, and aborted after that.

    asyncio's for TLS forgets its connection at the second ``close``: ``abort`` then does nothing.
    """

    def __init__(self, transport: asyncio.Transport):
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        if not self._transport.is_closing():
            self._transport.close()


HTTP_USES = ("connections", "cycle", "loop", "transport", "handle_websocket_upgrade")
"""What ``_Http`` needs of uvicorn's class; of ``cycle``, its ``response_complete``."""


class _Http(H11Protocol):
    """Closes a connection on which nothing happens; uvicorn would wait for ever."""

    seconds: float
    most: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Transport(transport)))
        self._watch()
        if len(self.connections) > self.most:
            self.transport.abort()

    def _watch(self) -> None:
        self._timer = self.loop.call_later(self.seconds, self._check, self._progress())

    def _progress(self) -> tuple[object, ...]:
        cycle = self.cycle
        return cycle, cycle is None or cycle.response_complete, self.transport.is_closing()

    def _check(self, before: tuple[object, ...]) -> None:
        if self._progress() == before:
            self.transport.abort()
        else:
            self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._timer.cancel()
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
"""What ``_WebSocket`` needs of uvicorn's class."""


class _WebSocket(WebSocketsSansIOProtocol):
    """Lets go of clients that do not read, and of those that send without end.

    A socket that is closed waits for its client to read; and while uvicorn takes apart what one
    client sends, all others wait. And refuses in silence: uvicorn logs each refusal as an error of
    the application's.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        now = self.loop.time()
        self._control_frames = TokenBucket(_CONTROL_FRAMES, now)
        self._messages = TokenBucket(_MESSAGES, now)

    def data_received(self, data: bytes) -> None:
        # The first data are a whole request; of one that websockets does not take, as with a line
        # of 8 KiB, uvicorn hears nothing, and would leave the client waiting.
        if not self.handshake_initiated:
            super().data_received(data)
            if not self.handshake_initiated and not self.transport.is_closing():
                self.transport.write(_BAD_REQUEST)
                self.transport.close()
            return
        for start in range(0, len(data), _SLICE_BYTES):
            if self.transport.is_closing():
                break
            super().data_received(data[start : start + _SLICE_BYTES])

    def _spent(self, allowance: TokenBucket) -> bool:
        if allowance.take(self.loop.time()):
            return False
        self.transport.abort()
        return True

    def _spent_on(self, frame: Frame) -> bool:
        return self._spent(self._messages if frame.data else self._control_frames)

    def handle_text(self, event: Frame) -> None:
        if not self._spent_on(event):
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if not self._spent_on(event):
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if not self._spent(self._control_frames):
            super().handle_cont(event)

    def handle_pong(self, event: Frame) -> None:
        if not self._spent(self._control_frames):
            super().handle_pong(event)

    def handle_ping(self) -> None:
        if self._spent(self._control_frames):
            return
        # All else that is sent waits for the client to read; pongs would pile up.
        if self.transport.get_write_buffer_size() > _UNREAD_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn does the same, and logs a trace
                self.frames = []
                if self.conn.state is State.OPEN:
                    self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = self.handshake_complete or not message.get("more_body")

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_CLOSE_SECONDS, self.transport.abort)


WEBSOCKET: type[WebSocketsSansIOProtocol] = _WebSocket


def http_protocol(seconds: float, most: int) -> type[H11Protocol]:
    """The class of a server's connections, until they become WebSockets.

    Args:
        seconds: For a request to come, and again for its answer to be read.
        most: Connections at once, WebSockets among them; one more is closed unheard.
    """
    return type("Http", (_Http,), {"seconds": seconds, "most": most})
