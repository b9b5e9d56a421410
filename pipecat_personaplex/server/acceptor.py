"""Accepts connections and lets them begin in turn, so that a burst of them delays no session.

A first request costs nearly a millisecond on the event loop, a TLS handshake more. A thousand at
once would keep the loop busy for a second, in which sessions wait. So connections begin at a
limited rate: those of each address in their order, and the addresses one after the other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from socket import socket
from typing import cast

from loguru import logger

from pipecat_personaplex.asgi.token_bucket import TokenBucket
from pipecat_personaplex.server.connection_limits import Connection, address_key

STARTS_PER_SECOND = 250.0
STARTS_AT_ONCE = 50.0

# Connections that are accepted in one iteration of the event loop.
_ACCEPTED_AT_ONCE = 16
# Pause when the process has no file descriptor left.
_RETRY_SECONDS = 1.0


class Acceptor:
    """Serves a listening socket. Has the methods of ``asyncio.Server`` that uvicorn calls.

    Args:
        listening: The socket, guarded by ``ConnectionLimits``.
        protocol: Creates the protocol of a connection.
        tls: TLS settings; None for none.
        handshake_seconds: How long a TLS handshake may take.
        close_seconds: How long the end of a TLS session may take.

    Example::

        acceptor = Acceptor(limits.guard(open_socket("127.0.0.1", 8998)), protocol)
        acceptor.start()
    """

    def __init__(
        self,
        listening: socket,
        protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None = None,
        *,
        handshake_seconds: float = 10.0,
        close_seconds: float = 5.0,
    ):
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._protocol = protocol
        self._tls = tls
        self._seconds = (handshake_seconds, close_seconds) if tls else (None, None)
        self._starts = TokenBucket(STARTS_PER_SECOND, STARTS_AT_ONCE, self._loop.time())
        # Connections that have not begun, by address; the address whose turn it is comes first.
        self._waiting: OrderedDict[str, deque[Connection]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to accept connections."""
        self._listening.setblocking(False)
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more connections, and close those that have not begun."""
        if self._accepting is None or self._accepting.done():
            return
        with suppress(NotImplementedError):  # loops without readers, as on Windows
            # A connection that arrives in this iteration would be given to a cancelled future.
            self._loop.remove_reader(self._listening)
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Wait until ``close`` has taken effect."""
        if self._accepting is not None:
            await asyncio.wait([self._accepting])

    async def _accept(self) -> None:
        try:
            await self._accept_until_cancelled()
        finally:
            self._listening.close()
            if self._timer is not None:
                self._timer.cancel()
            while self._waiting:
                for connection in self._waiting.popitem()[1]:
                    connection.close()

    async def _accept_until_cancelled(self) -> None:
        while True:
            try:
                for _ in range(_ACCEPTED_AT_ONCE):
                    connection, peer = await self._loop.sock_accept(self._listening)
                    own = self._waiting.setdefault(address_key(peer[0]), deque())
                    own.append(cast(Connection, connection))
                    if self._timer is None:
                        self._begin_waiting()
            except ConnectionAbortedError:  # many were refused in a row
                pass
            except OSError as error:
                logger.error("no connection can be accepted: {}", error.strerror or error)
                await asyncio.sleep(_RETRY_SECONDS)
            await asyncio.sleep(0)  # a flood of connections must not occupy the loop

    def _begin_waiting(self) -> None:
        """Begin as many connections as the rate allows now; the others later."""
        self._timer = None
        while connection := self._first_waiting():
            if not self._starts.take(self._loop.time()):
                self._timer = self._loop.call_later(1 / STARTS_PER_SECOND, self._begin_waiting)
                return
            address, own = self._waiting.popitem(last=False)
            own.popleft()
            connection.begun = True
            if own:
                self._waiting[address] = own  # behind all other addresses
            task = self._loop.create_task(self._begin(connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    def _first_waiting(self) -> Connection | None:
        """The connection whose turn it is; forgets those that had to make room."""
        while self._waiting:
            address, own = next(iter(self._waiting.items()))
            while own and own[0].fileno() < 0:
                own.popleft()
            if own:
                return own[0]
            del self._waiting[address]
        return None

    async def _begin(self, connection: Connection) -> None:
        # A client that ends its TLS handshake, or whose certificate store refuses ours.
        with suppress(OSError):
            await self._loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._seconds[0],
                ssl_shutdown_timeout=self._seconds[1],
            )
