"""Who comes in: keys, origins, and how many at once; and how all are asked to leave.

Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from loguru import logger
from starlette.requests import HTTPConnection

from pipecat_personaplex.errors import AccessDenied, EngineDraining, LimitReached
from pipecat_personaplex.server.auth import ANYBODY, ApiClient, ApiKeys, _is_address, _key_of
from pipecat_personaplex.server.config import ANY_ORIGIN, ServerConfig

_LAST_WORDS_SECONDS = 2.0
"""What is left at the end to tell clients of it."""

_SPARE_CONNECTIONS = 8
"""Of a key, beside two for each of its sessions: those that break, and those that only ask."""


def _ignore(*_: object) -> None:
    pass


@dataclass(eq=False)
class SessionPermit:
    """The right to one session; made by ``AdmissionController.admit``, given back with ``release``.

    Attributes:
        guest: Whose session it is.
        on_drain: Called with the seconds that are left when the server begins to stop.
        on_deadline: Called when these are over; the session must end now.
    """

    guest: ApiClient
    on_drain: Callable[[float], object]
    on_deadline: Callable[[], object]
    _door: AdmissionController = field(repr=False)

    def release(self) -> None:
        """The session is over; safe to call again."""
        self._door._release(self)


class AdmissionController:
    """Lets clients in, and knows who is inside.

    An endpoint asks ``admit`` for a ticket before it opens a session, and releases it when the
    session is over; a session that waits to be resumed keeps its ticket.

    Args:
        config: How many, and from where.
        keys: Who; None for anybody.
        clock: Monotonic seconds.

    Attributes:
        keys: As above; may be exchanged while the server runs.
        connections: WebSockets now.
        refusals: Clients and sessions that were not let in, by the error's code.
    """

    def __init__(
        self,
        config: ServerConfig,
        keys: ApiKeys | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.keys = keys
        self.connections = 0
        self.refusals: Counter[str] = Counter()
        self._config = config
        self._clock = clock
        self._tickets: set[SessionPermit] = set()
        self._connections_of: Counter[str] = Counter()
        self._deadline: float | None = None
        self._left = asyncio.Event()

    # Connections.

    def check_origin(self, connection: HTTPConnection) -> None:
        """Refuse the browser of a page that is not ours or allowed.

        Raises:
            AccessDenied: It is neither.
        """
        origin = connection.headers.get("origin")
        allowed = self._config.allow_origins
        if origin is None or ANY_ORIGIN in allowed or origin.lower() in allowed:
            return
        own = connection.headers.get("host", "").lower()
        same = bool(own) and origin.lower().partition("://")[2] == own
        # Any name may be made to point here (DNS rebinding), whose page would pass for ours: where
        # no key is asked for, it would talk to a server that only this machine reaches.
        if not same or (self.keys is None and not _is_address(own)):
            self.refusals["origin_denied"] += 1
            raise AccessDenied(
                f"pages of {origin[:100]} may not connect to this server unless --allow-origin "
                "names them"
            )

    def identify(self, connection: HTTPConnection) -> ApiClient:
        """Who a client is, by its key.

        Raises:
            AccessDenied: It has none, or one that nobody knows.
        """
        if self.keys is None:
            return ANYBODY
        key = _key_of(connection)
        guest = None if key is None else self.keys.guest_of(key)
        if guest is None:
            self.refusals["access_denied"] += 1
            raise AccessDenied(
                "this server wants a key: Authorization: Bearer KEY"
                if key is None
                else "the key is not one that this server knows"
            )
        return guest

    @contextmanager
    def connection(self) -> Iterator[None]:
        """A WebSocket, for as long as it lasts.

        Raises:
            LimitReached: There are as many as there may be.
        """
        if self.connections >= self._config.max_connections:
            self.refusals["too_many_connections"] += 1
            raise LimitReached(
                f"the server has its {self._config.max_connections} connections; try again later"
            )
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1
            self._left.set()

    @contextmanager
    def connection_of(self, guest: ApiClient) -> Iterator[None]:
        """The same, of a guest; one key with a limit cannot take all connections.

        Raises:
            LimitReached: The guest has as many as it may.
        """
        now = self._connections_of
        limit = guest.max_sessions
        if limit is not None and now[guest.name] >= 2 * limit + _SPARE_CONNECTIONS:
            self.refusals["key_connections"] += 1
            raise LimitReached(f"this key has its {now[guest.name]} connections; close one")
        now[guest.name] += 1
        try:
            yield
        finally:
            now[guest.name] -= 1

    # Sessions.

    @property
    def sessions(self) -> int:
        """Sessions now."""
        return len(self._tickets)

    def admit(
        self,
        guest: ApiClient,
        *,
        on_drain: Callable[[float], object] = _ignore,
        on_deadline: Callable[[], object] = _ignore,
    ) -> SessionPermit:
        """Let a guest have one session more.

        Args:
            guest: From ``identify``.
            on_drain: As ``SessionPermit.on_drain``, which may also be set later.
            on_deadline: As ``SessionPermit.on_deadline``.

        Raises:
            EngineDraining: The server is stopping.
            LimitReached: The guest has as many as its key allows.
        """
        if self.draining:
            self.refusals["engine_draining"] += 1
            raise EngineDraining("the server is stopping and takes no new sessions")
        limit = guest.max_sessions
        if limit is not None and self._sessions_of(guest) >= limit:
            self.refusals["key_limit"] += 1
            raise LimitReached(f"this key has its {limit} sessions; close one")
        ticket = SessionPermit(guest, on_drain, on_deadline, self)
        self._tickets.add(ticket)
        logger.info("{}: session opened, {} now", guest.name, self.sessions)
        return ticket

    def _sessions_of(self, guest: ApiClient) -> int:
        # By name: the same guest is another object once the keys were read again.
        return sum(ticket.guest.name == guest.name for ticket in self._tickets)

    def _release(self, ticket: SessionPermit) -> None:
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            logger.info("{}: session ended, {} now", ticket.guest.name, self.sessions)
            self._left.set()

    # The end.

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._deadline is not None

    @property
    def seconds_left(self) -> float:
        """Until sessions are ended: all of the time while the server is not stopping."""
        if self._deadline is None:
            return self._config.drain_seconds
        return max(0.0, self._deadline - self._clock())

    def start_draining(self) -> None:
        """Take no new sessions, and tell those there are; does nothing the second time."""
        if self.draining:
            return
        self._deadline = self._clock() + self._config.drain_seconds
        for ticket in list(self._tickets):
            _tell(ticket.on_drain, self.seconds_left)

    async def drain(self) -> None:
        """Return when every session is over, on its own or told to at the deadline."""
        self.start_draining()
        await self._until(lambda: not self._tickets, self.seconds_left)
        for ticket in list(self._tickets):
            _tell(ticket.on_deadline)
        # Connections too: what their clients are told must still be sent.
        await self._until(lambda: not self._tickets and not self.connections, _LAST_WORDS_SECONDS)

    async def _until(self, empty: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not empty():
                    self._left.clear()
                    await self._left.wait()


def _tell(callback: Callable[..., object], *args: object) -> None:
    try:
        callback(*args)
    except Exception as error:  # one session's defect is not the others' business
        logger.opt(exception=error).error("a session could not be told that the server stops")
