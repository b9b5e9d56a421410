"""What the client knows of a server, and the channels of its sessions there."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from loguru import logger

from pipecat_personaplex.audio import QueuedFrame
from pipecat_personaplex.errors import EngineFull, EngineUnreachable, SessionLost
from pipecat_personaplex.interface import Feature
from pipecat_personaplex.remote.address import ServerAddress
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.stats import ServerStats

_POLL_SECONDS = 2.0
# The client itself refuses a session as EngineFull only while the server's report is this recent.
_FRESH_SECONDS = 5.0


class TakenOver(SessionLost):
    """Another client has resumed the session, which goes on there."""


def never() -> bool:
    """The ``can_move`` of a channel whose call cannot move."""
    return False


class Channel(Protocol):
    """One session's connection to one server; used on the remote engine's thread only.

    Attributes:
        session: The caller's side.
        draining: Set once the server reports that it is stopping.
        can_move: Returns whether another server can take the call.
        server_id: The session's public id at this server; empty if unknown.
    """

    session: RemoteSession
    draining: asyncio.Event
    can_move: Callable[[], bool]
    server_id: str

    async def open(self) -> None:
        """Request a slot.

        Raises:
            PersonaPlexError: The server refuses, or does not respond.
        """

    async def run(self) -> None:
        """Send and receive until cancelled.

        Raises:
            PersonaPlexError: The error that ended the session.
        """

    def wake(self) -> None:
        """Notify the channel that the session has something to send."""

    def unconfirmed(self) -> list[QueuedFrame]:
        """The input frames that are sent and not confirmed, in order."""

    async def close(self) -> None:
        """Give the slot back and disconnect; never raises."""


class Server(ABC):
    """One server; modified on the remote engine's thread only, read on any thread.

    Args:
        address: How to reach it.

    Attributes:
        voices: The voices it reported last.
        draining: Whether it is stopping and takes no new sessions.
        max_sessions: Its slots; 0 if it does not report them.
        features: What its sessions can do.
        progress: Whether it reports the progress of speeches.
        error: Why it is not reachable; None if it is.
    """

    def __init__(self, address: ServerAddress):
        self.address = address
        self.voices: Sequence[str] = ()
        self.draining = False
        self.max_sessions = 0
        self.features: frozenset[Feature] = frozenset()
        self.progress = False
        self.error: EngineUnreachable | None = EngineUnreachable(f"{address.url}: not polled yet")
        self._channels: set[Channel] = set()
        # Tasks that close channels, and those of them that may free a slot. A channel that the
        # server refused as full has no slot to free.
        self._closing: set[asyncio.Task[None]] = set()
        self._freeing: set[asyncio.Task[None]] = set()
        self._reported_sessions = 0
        self._opening = 0
        self._reported_at = -_FRESH_SECONDS

    @abstractmethod
    async def poll(self) -> None:
        """Request the server's state and store it.

        Raises:
            EngineUnreachable: The server does not respond.
        """

    @abstractmethod
    def new_channel(self, session: RemoteSession) -> Channel:
        """Create a channel for a session; the caller opens it."""

    @property
    def reachable(self) -> bool:
        """Whether the latest poll or connection succeeded."""
        return self.error is None

    @property
    def sessions(self) -> int:
        """Sessions at the server as far as known, without those that are closing."""
        # list(set) is one bytecode: the engine's thread cannot change the set meanwhile.
        own = list(self._channels)
        # The server's report may be older than the channels opened here since.
        known = max(self._reported_sessions, len(own))
        return max(0, known - sum(channel.session.closed for channel in own))

    @property
    def full(self) -> bool:
        """Whether a recent report says that every slot is taken."""
        fresh = time.monotonic() - self._reported_at < _FRESH_SECONDS
        return fresh and 0 < self.max_sessions <= self.sessions

    @property
    def load(self) -> float:
        """Sessions per slot if the next session opened here, those being opened included."""
        return (self.sessions + self._opening + 1) / max(1, self.max_sessions)

    def has_voice(self, name: str) -> bool:
        """Whether a persona may use this voice here."""
        return name in self.voices

    def stats(self) -> ServerStats:
        """The latest known state."""
        error = self.error
        return ServerStats(
            url=self.address.url,
            reachable=error is None,
            draining=self.draining,
            sessions=self.sessions,
            max_sessions=self.max_sessions,
            reason=str(error or ""),
        )

    def mark_reachable(self, sessions: int) -> None:
        """Store the number of sessions that the server has just reported."""
        self._reported_sessions = sessions
        self._reported_at = time.monotonic()
        self.error = None

    def mark_draining(self) -> None:
        """Store that the server is stopping, until its next hello."""
        self.draining = True

    def _mark_unreachable(self, error: EngineUnreachable) -> None:
        if self.error is None:
            logger.warning("the engine's server is unreachable: {}", error)
        self.error = error

    async def watch(self, on_polled: Callable[[], object]) -> None:
        """Poll the server until cancelled.

        Args:
            on_polled: Called after each poll.
        """
        while True:
            try:
                await self.poll()
            except EngineUnreachable as error:
                self._mark_unreachable(error)
            except Exception as error:  # without this, the server would never be polled again
                reason = f"{self.address.url}: {type(error).__name__}: {error}"
                self._mark_unreachable(EngineUnreachable(reason))
            on_polled()
            # Jitter: clients that started together must not poll together.
            await asyncio.sleep(_POLL_SECONDS * random.uniform(0.75, 1.25))

    async def open(self, session: RemoteSession) -> Channel:
        """Open a session at this server.

        Raises:
            PersonaPlexError: The server refuses, or does not respond.
        """
        self._opening += 1
        try:
            return await self._open(session)
        except EngineFull:
            # A slot that this client is giving back is free once the server has been notified.
            if not self._freeing:
                raise
            await asyncio.wait(self._freeing)
            return await self._open(session)
        except EngineUnreachable as error:
            self._mark_unreachable(error)
            raise
        finally:
            self._opening -= 1

    async def _open(self, session: RemoteSession) -> Channel:
        channel = self.new_channel(session)
        try:
            await channel.open()
        except BaseException as error:
            self.release(channel, may_free_slot=not isinstance(error, EngineFull))
            raise
        self._channels.add(channel)
        self._reported_sessions += 1
        return channel

    def release(self, channel: Channel, *, may_free_slot: bool = True) -> None:
        """Close a session's channel in the background.

        Args:
            channel: The session's channel.
            may_free_slot: False if the server refused the session a slot.
        """
        task = asyncio.create_task(self._close(channel))
        for tasks in (self._closing, self._freeing) if may_free_slot else (self._closing,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _close(self, channel: Channel) -> None:
        await channel.close()
        if channel in self._channels:
            self._channels.discard(channel)
            self._reported_sessions = max(0, self._reported_sessions - 1)

    async def wait_released(self) -> None:
        """Wait until every released channel is closed."""
        if self._closing:
            await asyncio.wait(self._closing)
