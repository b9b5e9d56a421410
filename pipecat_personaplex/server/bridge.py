"""An engine's session as an event loop sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.engine.interface import EngineLike, SessionLike
from pipecat_personaplex.engine.session import SessionFrame
from pipecat_personaplex.errors import LimitReached, PersonaPlexError


@dataclass(frozen=True)
class Ready:
    """The prompt is in."""


@dataclass(frozen=True)
class Drains:
    """The server stops, and the session ends after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ended:
    """The session is over: as asked where there is no error."""

    error: PersonaPlexError | None


Event = Ready | SessionFrame | Drains | Ended


class Bridge:
    """Events of a session, from the model thread to whoever waits for them on the loop.

    The model thread does no more than to call the loop. Events wait in order for ``next``; over
    ``max_waiting`` of them belong to a client that does not read, and the session ends with
    ``LimitReached``: sound that comes late is of no use, and a gap would be heard.

    Args:
        max_waiting: As above.
    """

    def __init__(self, max_waiting: int):
        self.ready = False
        self._loop = asyncio.get_running_loop()
        self._max_waiting = max_waiting
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._session: SessionLike | None = None
        self._ended: Ended | None = None
        self._when_over: list[Callable[[], object]] = []

    def open(self, engine: EngineLike, persona: Persona, sampling: SamplingParams) -> None:
        """Open the session; once.

        Raises:
            PersonaPlexError: As ``Engine.open_session``.
        """
        self._session = engine.open_session(
            persona,
            sampling,
            on_frame=self._report,
            on_ready=lambda: self._report(Ready()),
            on_end=lambda error: self._report(Ended(error)),
        )

    @property
    def session(self) -> SessionLike:
        """The engine's session."""
        assert self._session is not None, "the bridge is open"
        return self._session

    @property
    def closed(self) -> bool:
        """Whether the session is over because that was asked for."""
        return self._ended is not None and self._ended.error is None

    def call_when_over(self, callback: Callable[[], object]) -> None:
        """Have something called, once, as soon as the session is over."""
        self._when_over.append(callback)

    async def next(self) -> Event:
        """The next event; ``Ended`` is the last, and comes again and again.

        One caller at a time. An event is taken when this returns, and not where it is cancelled.
        """
        if self._ended is not None and self._events.empty():
            return self._ended
        return await self._events.get()

    def tell(self, event: Event) -> None:
        """Put in an event among the session's own."""
        if self._ended is None:
            self._take(event)

    def end(self, error: PersonaPlexError | None, *, at_once: bool = False) -> None:
        """End the session; its slot is free. Does nothing where it is over already.

        Args:
            error: Why; None if that was asked for.
            at_once: Whether events that wait are dropped; else ``Ended`` comes after them.
        """
        if self._ended is not None:
            return
        self._ended = Ended(error)
        self.session.close()
        while at_once and not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(self._ended)
        for callback in self._when_over:
            callback()

    def _report(self, event: Event) -> None:
        """On the model thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.tell, event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Ended):
            self.end(event.error)
        elif self._events.qsize() >= self._max_waiting:
            self.end(LimitReached("the client does not read what it is sent"), at_once=True)
        else:
            self.ready = self.ready or isinstance(event, Ready)
            self._events.put_nowait(event)
