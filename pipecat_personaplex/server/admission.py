"""How many clients may connect and have sessions at once, and how the server drains.

Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from loguru import logger
from starlette.requests import HTTPConnection

from pipecat_personaplex.asgi.origins import check_origin
from pipecat_personaplex.errors import AccessDenied, EngineDraining, LimitReached
from pipecat_personaplex.server import auth
from pipecat_personaplex.server.auth import ApiClient, ApiKeys
from pipecat_personaplex.server.config import ServerConfig

Refusal = Literal[
    "origin_denied",
    "access_denied",
    "too_many_connections",
    "key_connections",
    "engine_draining",
    "key_limit",
]
"""Why a connection or a session was refused, for the metrics."""

_FAREWELL_SECONDS = 2.0
"""Time after the drain deadline in which the last messages are sent."""

_SPARE_CONNECTIONS = 8
"""Connections of a key in addition to two for each of its sessions: broken connections that have
not timed out yet, and connections that only ask for the server's state."""


def _ignore(*_: object) -> None:
    pass


@dataclass(eq=False)
class SessionPermit:
    """The right to one session, from ``AdmissionController.admit`` until ``release``.

    Attributes:
        client: The client that has the session.
        on_drain: Called with the seconds left when the server begins to drain.
        on_deadline: Called when these seconds are over; the session must end now.
    """

    client: ApiClient
    on_drain: Callable[[float], object]
    on_deadline: Callable[[], object]
    _controller: AdmissionController = field(repr=False)

    def release(self) -> None:
        """Give the permit back; later calls do nothing."""
        self._controller._release(self)


class AdmissionController:
    """Decides who may connect and open a session, and drains the server.

    ``app`` checks each WebSocket before its upgrade. An endpoint requests a permit with ``admit``
    before it opens a session and releases it when the session has ended; a session that waits to
    be resumed holds its permit.

    Args:
        config: Limits and allowed origins.
        keys: Keys that the server accepts; None if it needs none.
        clock: Monotonic time in seconds.

    Attributes:
        keys: As above; may be replaced while the server runs.
        connections: WebSockets open now.
        refusals: Number of refused connections and sessions by reason, for the metrics.

    Example::

        admission = AdmissionController(ServerConfig(), ApiKeys.read("keys.txt"))
        client = admission.identify(websocket)
        permit = admission.admit(client, on_deadline=session.close)
        permit.release()
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
        self.refusals: Counter[Refusal] = Counter()
        self._config = config
        self._clock = clock
        self._permits: set[SessionPermit] = set()
        self._connections_of: Counter[str] = Counter()
        self._deadline: float | None = None
        self._departed = asyncio.Event()

    # Connections.

    def check_origin(self, connection: HTTPConnection) -> None:
        """Refuse a browser whose page comes from another site.

        Raises:
            AccessDenied: As ``origins.check_origin``.
        """
        with self._counted("origin_denied"):
            self._check_origin(connection, keys_required=self.keys is not None)

    def options_for(self, connection: HTTPConnection) -> list[str]:
        """Options of ``personaplex serve`` of which each would let a refused page connect.

        Counts no refusal.

        Args:
            connection: A request with the page's ``Host`` and ``Origin``.

        Returns:
            No option if the page may connect already.
        """
        if self._allows(connection, keys_required=self.keys is not None):
            return []
        allowing = f"--allow-origin {connection.headers['origin'][:100]}"
        # With keys, the name of a page matters no more.
        if self._allows(connection, keys_required=True):
            return ["--api-key-file", allowing]
        return [allowing]

    def _allows(self, connection: HTTPConnection, *, keys_required: bool) -> bool:
        with suppress(AccessDenied):
            self._check_origin(connection, keys_required=keys_required)
            return True
        return False

    def _check_origin(self, connection: HTTPConnection, *, keys_required: bool) -> None:
        check_origin(
            connection,
            self._config.allow_origins,
            keys_required=keys_required,
            option="--allow-origin",
        )

    def identify(self, connection: HTTPConnection) -> ApiClient:
        """Find the client of a request by its key.

        Raises:
            AccessDenied: As ``auth.identify``.
        """
        with self._counted("access_denied"):
            return auth.identify(connection, self.keys)

    @contextmanager
    def _counted(self, reason: Refusal) -> Iterator[None]:
        try:
            yield
        except AccessDenied:
            self.refusals[reason] += 1
            raise

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Count a WebSocket while it is open.

        Raises:
            LimitReached: The server has ``max_connections`` already.
        """
        if self.connections >= self._config.max_connections:
            self.refusals["too_many_connections"] += 1
            raise LimitReached(
                f"the server has reached its limit of {self._config.max_connections} connections; "
                "try again later"
            )
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1
            self._departed.set()

    @contextmanager
    def connection_of(self, client: ApiClient) -> Iterator[None]:
        """Count a WebSocket of one client while it is open.

        A key with a session limit also has a connection limit, so that it cannot use up all
        connections of the server.

        Raises:
            LimitReached: The key has as many connections as it may have.
        """
        now = self._connections_of
        limit = client.max_sessions
        if limit is not None and now[client.name] >= 2 * limit + _SPARE_CONNECTIONS:
            self.refusals["key_connections"] += 1
            raise LimitReached(
                f"this key has reached its limit of {now[client.name]} connections; close one"
            )
        now[client.name] += 1
        try:
            yield
        finally:
            now[client.name] -= 1

    # Sessions.

    @property
    def sessions(self) -> int:
        """Sessions that hold a permit now."""
        return len(self._permits)

    def admit(
        self,
        client: ApiClient,
        *,
        on_drain: Callable[[float], object] = _ignore,
        on_deadline: Callable[[], object] = _ignore,
    ) -> SessionPermit:
        """Give a client a permit for one more session.

        Args:
            client: From ``identify``.
            on_drain: As ``SessionPermit.on_drain``, which may also be set later.
            on_deadline: As ``SessionPermit.on_deadline``.

        Raises:
            EngineDraining: The server is stopping.
            LimitReached: The client has as many sessions as its key allows.
        """
        if self.draining:
            self.refusals["engine_draining"] += 1
            raise EngineDraining("the server is stopping and takes no new sessions")
        limit = client.max_sessions
        if limit is not None and self._sessions_of(client) >= limit:
            self.refusals["key_limit"] += 1
            raise LimitReached(f"this key has reached its limit of {limit} sessions; close one")
        permit = SessionPermit(client, on_drain, on_deadline, self)
        self._permits.add(permit)
        return permit

    def _sessions_of(self, client: ApiClient) -> int:
        # Compare names: reading the key file again creates new ApiClient objects.
        return sum(permit.client.name == client.name for permit in self._permits)

    def _release(self, permit: SessionPermit) -> None:
        if permit in self._permits:
            self._permits.remove(permit)
            self._departed.set()

    # Draining.

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._deadline is not None

    @property
    def seconds_left(self) -> float:
        """Seconds until running sessions are ended; ``drain_seconds`` before draining starts."""
        if self._deadline is None:
            return self._config.drain_seconds
        return max(0.0, self._deadline - self._clock())

    def start_draining(self) -> None:
        """Refuse new sessions and notify the running ones; later calls do nothing."""
        if self.draining:
            return
        self._deadline = self._clock() + self._config.drain_seconds
        logger.info(
            "draining for {:g} s; sessions now: {}", self._config.drain_seconds, self.sessions
        )
        for permit in list(self._permits):
            _notify(permit.on_drain, self.seconds_left)

    async def drain(self) -> None:
        """Wait until all sessions have ended; end those that still run at the deadline."""
        self.start_draining()
        await self._wait_until(lambda: not self._permits, self.seconds_left)
        if self._permits:
            logger.warning("the drain time is over; sessions that are ended now: {}", self.sessions)
        for permit in list(self._permits):
            _notify(permit.on_deadline)
        # Wait for the connections too: their last messages are still being sent.
        await self._wait_until(
            lambda: not self._permits and not self.connections, _FAREWELL_SECONDS
        )

    async def _wait_until(self, empty: Callable[[], bool], seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not empty():
                    self._departed.clear()
                    await self._departed.wait()


def _notify(callback: Callable[..., object], *args: object) -> None:
    try:
        callback(*args)
    except Exception as error:  # A defect of one session must not keep the others from draining.
        logger.opt(exception=error).error("a session could not be notified that the server stops")
