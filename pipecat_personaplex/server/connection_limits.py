"""Limits on connections whose clients are not known yet: before TLS, keys and upgrades.

Everything here happens when a connection is accepted, before any object is created for it. A flood
of connections from one address therefore costs little more than accepting and closing them.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR, socket
from typing import Any

from pipecat_personaplex.asgi.token_bucket import TokenBucket

_MAX_ADDRESSES = 4096
"""Addresses that are remembered; the one that has not connected for the longest is forgotten."""
_REFUSED_AT_ONCE = 64
"""Connections that one call of ``accept`` may refuse, so that the event loop goes on."""
_FAIR_SHARE = 64
"""When the server is full, an address with more connections than this loses its own oldest one."""


class ConnectionLimits:
    """Decides which connections of a listening socket are accepted.

    An address has an allowance of new connections. When the server has as many connections as it
    may have, the oldest that is not a WebSocket yet makes room, first among those of an address
    that has many: silent connections cannot lock out other clients.

    Args:
        per_second: New connections of one address in a second; 0 for no limit. IPv6 addresses
            count by their /64 network.
        burst: New connections of one address at once.
        max_connections: Connections at once.
        clock: Monotonic time in seconds.

    Attributes:
        refused: Connections that were closed because of their address's allowance.
        evicted: Connections that had to make room.

    Example::

        limits = ConnectionLimits(per_second=50, burst=1024, max_connections=2048)
        listening = limits.guard(create_server(("", 8998)))
    """

    def __init__(
        self,
        per_second: float,
        burst: float,
        max_connections: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.refused = 0
        self.evicted = 0
        self._per_second, self._burst = per_second, burst
        self._max_connections = max_connections
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._connections: dict[int, Connection] = {}  # by file descriptor
        # Those that are not WebSockets yet, oldest first: all, and by address.
        self._waiting: OrderedDict[int, Connection] = OrderedDict()
        self._waiting_of: dict[str, OrderedDict[int, Connection]] = {}

    def guard(self, listening: socket) -> socket:
        """Return a listening socket in place of this one that accepts by these limits."""
        guarded = _ListeningSocket(
            listening.family, listening.type, listening.proto, listening.detach()
        )
        guarded.limits = self
        return guarded

    def upgraded(self, descriptor: int) -> None:
        """Take that a connection has become a WebSocket: it need not make room any more."""
        self._forget_waiting(descriptor)

    def admit(self, connection: Connection, address: str) -> bool:
        """Count a new connection; return False if it must be closed."""
        if not self._has_allowance(address):
            self.refused += 1
            return False
        if len(self._connections) >= self._max_connections and not self._make_room(address):
            self.refused += 1
            return False
        descriptor = connection.fileno()
        connection.on_close = self._closed
        connection.descriptor, connection.address = descriptor, address
        self._connections[descriptor] = self._waiting[descriptor] = connection
        self._waiting_of.setdefault(address, OrderedDict())[descriptor] = connection
        return True

    def _has_allowance(self, address: str) -> bool:
        if not self._per_second:
            return True
        now = self._clock()
        bucket = self._buckets.get(address)
        if bucket is None:
            if len(self._buckets) >= _MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            bucket = self._buckets[address] = TokenBucket(self._per_second, self._burst, now)
        else:
            self._buckets.move_to_end(address)
        return bucket.take(now)

    def _make_room(self, address: str) -> bool:
        own = self._waiting_of.get(address, ())
        waiting = own if len(own) > _FAIR_SHARE else self._waiting
        oldest = next(iter(waiting), None)
        if oldest is None:
            return False
        connection = self._connections.pop(oldest)
        self._forget_waiting(oldest)
        self.evicted += 1
        if not connection.begun:
            connection.close()
            return True
        with suppress(OSError):  # the client has disconnected
            # Not close: the event loop still uses the descriptor, and sees the end of the stream.
            connection.shutdown(SHUT_RDWR)
        return True

    def _closed(self, connection: Connection) -> None:
        # An evicted connection closes later, when its descriptor may belong to another.
        if self._connections.get(connection.descriptor) is connection:
            del self._connections[connection.descriptor]
            self._forget_waiting(connection.descriptor)

    def _forget_waiting(self, descriptor: int) -> None:
        connection = self._waiting.pop(descriptor, None)
        if connection is not None:
            own = self._waiting_of[connection.address]
            del own[descriptor]
            if not own:
                del self._waiting_of[connection.address]


class Connection(socket):
    """An accepted connection, which reports its end.

    Attributes:
        on_close: Called once when it is closed.
        begun: Whether the event loop reads from it; it waits for its turn before.
        descriptor: Its file descriptor while it was open.
        address: The client's address.
    """

    on_close: Callable[[Connection], None] | None = None
    begun = False
    descriptor: int
    address: str

    def close(self) -> None:
        """Close it and report its end."""
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close(self)
        super().close()


class _ListeningSocket(socket):
    """Accepts connections by ``limits``."""

    limits: ConnectionLimits

    def accept(self) -> tuple[socket, Any]:
        for _ in range(_REFUSED_AT_ONCE):
            descriptor, peer = self._accept()  # type: ignore[attr-defined]
            connection = Connection(self.family, self.type, self.proto, descriptor)
            if self.limits.admit(connection, address_key(peer[0])):
                return connection, peer
            connection.close()
        raise ConnectionAbortedError  # asyncio calls again in its next iteration


def address_key(host: str) -> str:
    """Return what counts as one address: an IPv4 address, or the /64 network of an IPv6 one."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
