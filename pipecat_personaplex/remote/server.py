"""What is known of each server, and which one gets the next session."""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from loguru import logger

from pipecat_personaplex.errors import (
    EngineFull,
    EngineUnreachable,
)
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.stats import ServerStats

_LOOK_SECONDS = 2.0
# How old news may be for a refusal that nobody but the client has uttered.
_FRESH_SECONDS = 5.0


class Channel(Protocol):
    """One session's way to one server; each step on the remote engine's thread."""

    session: RemoteSession

    async def open(self) -> None:
        """Get a slot.

        Raises:
            PersonaPlexError: There is none to be had.
        """

    async def run(self) -> None:
        """Converse until cancelled.

        Raises:
            PersonaPlexError: What ended the session.
        """

    def wake(self) -> None:
        """The session has something to send."""

    async def leave(self) -> None:
        """Give the slot back; never raises."""


class Server(ABC):
    """One server. Changed on the remote engine's thread alone, read on any.

    Args:
        address: Where it is.
    """

    def __init__(self, address: Address):
        self.address = address
        self.voices: Sequence[str] = ()
        self.draining = False
        self.max_sessions = 0
        # Why a session here cannot be told what to say; empty where it can.
        self.mute = ""
        self.error: EngineUnreachable | None = EngineUnreachable(f"{address.url}: not asked yet")
        self._lines: set[Channel] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        # Those of them that may free a slot: a line that was refused for want of one does not.
        self._freeing: set[asyncio.Task[None]] = set()
        self._sessions = 0
        self._pending = 0
        self._seen = -_FRESH_SECONDS

    @abstractmethod
    async def look(self) -> None:
        """Learn how the server is.

        Raises:
            EngineUnreachable: It does not answer.
        """

    @abstractmethod
    def line(self, session: RemoteSession) -> Channel:
        """A way to the server that is yet to be opened."""

    @property
    def reachable(self) -> bool:
        """Whether the server answered when last asked."""
        return self.error is None

    @property
    def sessions(self) -> int:
        """Sessions it has, as far as is known, those that are closing aside."""
        # list() of a set is one step of the interpreter: the engine's thread cannot interfere.
        own = list(self._lines)
        # What the server says may be older than what has been opened here since.
        return max(0, max(self._sessions, len(own)) - sum(line.session.closed for line in own))

    @property
    def full(self) -> bool:
        """Whether there is certainly no room."""
        fresh = time.monotonic() - self._seen < _FRESH_SECONDS
        return fresh and 0 < self.max_sessions <= self.sessions

    @property
    def load(self) -> float:
        """Sessions for each slot if it got the next one, those on their way here included."""
        return (self.sessions + self._pending + 1) / max(1, self.max_sessions)

    def has_voice(self, name: str) -> bool:
        """Whether a persona may use this voice here."""
        return name in self.voices

    def stats(self) -> ServerStats:
        """What is known."""
        error = self.error
        return ServerStats(
            self.address.url,
            error is None,
            self.draining,
            self.sessions,
            self.max_sessions,
            str(error or ""),
        )

    def answered(self, sessions: int) -> None:
        """The server has just said how many sessions it has."""
        self._sessions = sessions
        self._seen = time.monotonic()
        self.error = None

    async def watch(self, looked: Callable[[], object]) -> None:
        """Ask the server how it is, again and again.

        Args:
            looked: Called each time that it is known.
        """
        while True:
            try:
                await self.look()
            except EngineUnreachable as error:
                self._lost(error)
            except Exception as error:  # or nobody would ask this server again
                self._lost(
                    EngineUnreachable(f"{self.address.url}: {type(error).__name__}: {error}")
                )
            looked()
            # Else many clients that started together would ask together.
            await asyncio.sleep(_LOOK_SECONDS * random.uniform(0.75, 1.25))

    async def open(self, session: RemoteSession) -> Channel:
        """Open a session here.

        Raises:
            PersonaPlexError: It cannot be had.
        """
        self._pending += 1
        try:
            return await self._open(session)
        except EngineFull:
            # A slot that its caller has given up is as good as free, once the server knows.
            if not self._freeing:
                raise
            await asyncio.wait(self._freeing)
            return await self._open(session)
        except EngineUnreachable as error:
            self._lost(error)
            raise
        finally:
            self._pending -= 1

    async def _open(self, session: RemoteSession) -> Channel:
        line = self.line(session)
        try:
            await line.open()
        except BaseException as error:
            self.part(line, frees=not isinstance(error, EngineFull))
            raise
        self._lines.add(line)
        self._sessions += 1
        return line

    def part(self, line: Channel, *, frees: bool = True) -> None:
        """Give a session's slot back, in the background.

        Args:
            line: The session's.
            frees: Whether it may have a slot.
        """
        task = asyncio.create_task(self._part(line))
        for tasks in (self._leaving, self._freeing) if frees else (self._leaving,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _part(self, line: Channel) -> None:
        await line.leave()
        if line in self._lines:
            self._lines.discard(line)
            self._sessions = max(0, self._sessions - 1)

    async def parted(self) -> None:
        """Wait until every slot that was given up is given back."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    def drains(self) -> None:
        """The server has just said that it is stopping; its next hello may say otherwise."""
        self.draining = True

    def _lost(self, error: EngineUnreachable) -> None:
        if self.error is None:
            logger.warning("an engine's server is out of reach: {}", error)
        self.error = error
