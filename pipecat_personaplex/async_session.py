"""A session as an event loop sees it: its callbacks arrive as events.

Sessions call back on another thread (the model thread, or the remote engine's). ``open_session``
turns these callbacks into events on the event loop; ``AsyncSession`` adds a bounded queue for a
consumer that may be slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import LimitReached, PersonaPlexError
from pipecat_personaplex.interface import CallHistory, EngineLike, SessionFrame, SessionLike


@dataclass(frozen=True)
class Ready:
    """The prompt has been computed; from now on the session computes frames."""


@dataclass(frozen=True)
class Draining:
    """The server is stopping; the session ends after this many seconds."""

    seconds: float


@dataclass(frozen=True)
class Progress:
    """A speech or a prompt update has changed; see ``AsyncSession.notify``."""


@dataclass(frozen=True)
class Ended:
    """The session has ended.

    Attributes:
        error: Why it failed; None if it was closed on purpose.
        reason: Why it was closed on purpose, one line for the log.
    """

    error: PersonaPlexError | None
    reason: str = "closed"


SessionEvent = Ready | SessionFrame | Ended
"""What an engine's session reports, in this order: Ready, frames, Ended."""

Event = SessionEvent | Draining | Progress
"""What ``AsyncSession.next`` returns."""


def open_session(
    engine: EngineLike,
    persona: Persona,
    sampling: SamplingParams,
    deliver: Callable[[SessionEvent], object],
    history: CallHistory | None = None,
) -> SessionLike:
    """Open a session whose callbacks become calls of ``deliver`` on the running event loop.

    Args:
        engine: Where the session is opened.
        persona: Voice and role.
        sampling: How tokens are sampled.
        deliver: Called on the event loop with each event, in order. It is never called before
            this function returns.
        history: A call to continue.

    Raises:
        PersonaPlexError: As ``Engine.open_session``.
    """
    loop = asyncio.get_running_loop()

    def report(event: SessionEvent) -> None:
        # A closed loop has no listener, and the calling thread must not fail because of it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, event)

    return engine.open_session(
        persona,
        sampling,
        on_ready=lambda: report(Ready()),
        on_frame=report,
        on_end=lambda error: report(Ended(error)),
        history=history,
    )


class AsyncSession:
    """A session with a bounded queue of events for one consumer on the event loop.

    More than ``max_waiting`` events in the queue mean that the consumer does not keep up. The
    session then ends with ``LimitReached``: late sound is of no use, and a gap would be heard.

    Args:
        max_waiting: Events that may wait in the queue.

    Attributes:
        ready_at: When the prompt was computed, on the event loop's clock; None before.

    Example::

        session = AsyncSession(max_waiting=100)
        session.open(engine, persona, SamplingParams())
        while not isinstance(event := await session.next(), Ended):
            ...
    """

    def __init__(self, max_waiting: int):
        self.ready_at: float | None = None
        self._max_waiting = max_waiting
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._session: SessionLike | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._progress_waits = False
        self._ended: Ended | None = None
        self._on_end: list[Callable[[Ended], object]] = []

    @property
    def ready(self) -> bool:
        """Whether the prompt has been computed."""
        return self.ready_at is not None

    def open(
        self,
        engine: EngineLike,
        persona: Persona,
        sampling: SamplingParams,
        history: CallHistory | None = None,
    ) -> None:
        """Open the engine's session; to be called once.

        Raises:
            PersonaPlexError: As ``Engine.open_session``.
        """
        self._loop = asyncio.get_running_loop()
        self._session = open_session(engine, persona, sampling, self.put, history)

    @property
    def engine_session(self) -> SessionLike:
        """The engine's session."""
        assert self._session is not None, "open() comes first"
        return self._session

    @property
    def id(self) -> str:
        """The session's public id, as in the logs."""
        return self.engine_session.id

    @property
    def ended(self) -> bool:
        """Whether the session has ended, with or without an error."""
        return self._ended is not None

    @property
    def closed(self) -> bool:
        """Whether the session has ended on purpose, without an error."""
        return self._ended is not None and self._ended.error is None

    def add_end_callback(self, callback: Callable[[Ended], object]) -> None:
        """Have ``callback`` called once with the ``Ended`` event, as soon as it happens."""
        self._on_end.append(callback)

    async def next(self) -> Event:
        """Wait for the next event. ``Ended`` is the last, and is returned again from then on.

        Only one task may wait at a time. A cancelled call takes no event from the queue.
        """
        if self._ended is not None and self._events.empty():
            return self._ended
        event = await self._events.get()
        if isinstance(event, Progress):
            self._progress_waits = False
        return event

    def notify(self) -> None:
        """Queue ``Progress`` from any thread; does nothing while one is in the queue."""
        assert self._loop is not None, "open() comes first"
        with suppress(RuntimeError):  # the loop is closed: it has no listener
            self._loop.call_soon_threadsafe(self.put, Progress())

    def put(self, event: Event) -> None:
        """Queue an event; dropped once the session has ended."""
        if self._ended is not None:
            return
        if isinstance(event, Ended):
            self.end(event.error)
        elif isinstance(event, Progress):
            # One says as much as many: it does not count as an event that waits.
            if not self._progress_waits:
                self._progress_waits = True
                self._events.put_nowait(event)
        elif self._events.qsize() - self._progress_waits >= self._max_waiting:
            self.end(LimitReached("the client does not read what it is sent"), drop_events=True)
        else:
            if isinstance(event, Ready):
                self.ready_at = asyncio.get_running_loop().time()
            self._events.put_nowait(event)

    def end(
        self,
        error: PersonaPlexError | None,
        *,
        reason: str = "closed",
        drop_events: bool = False,
    ) -> None:
        """End the session and free its slot; does nothing if it has ended.

        Args:
            error: Why it fails; None if it is closed on purpose.
            reason: As ``Ended.reason``.
            drop_events: Whether to drop the queued events; otherwise ``Ended`` follows them.
        """
        if self._ended is not None:
            return
        self._ended = Ended(error, reason)
        self.engine_session.close()
        while drop_events and not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(self._ended)
        for callback in self._on_end:
            callback(self._ended)
