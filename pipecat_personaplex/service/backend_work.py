"""What the backend is doing, as far as its events show."""

from __future__ import annotations

# Between a note and the spoken part of the same message.
_SAME_MESSAGE_SECONDS = 0.05


class BackendWork:
    """Requests that the backend has, its tool calls, and which request an output answers.

    A request that arrives while the backend's model runs is not seen by that run, so the next
    output is of the turn before: it is stale. A tool's result starts another run, which sees it.

    Attributes:
        outstanding: Whether the backend has a request that it has not finished.
        tools: Calls in flight.
    """

    def __init__(self) -> None:
        self.outstanding = False
        self.tools: set[str] = set()
        self._unacknowledged: set[int] = set()
        self._idle_expected = False  # for the work before the newest request
        self._stale = False
        self._stale_until: float | None = None

    def send(self, request: int, *, turn: bool) -> None:
        """A request is on its way.

        Args:
            request: Its number.
            turn: Whether it is a turn of the caller, which makes earlier answers stale.
        """
        if turn:
            self._stale = self.outstanding and not self.tools
            self._stale_until = None
            self._idle_expected = self.outstanding
        self.outstanding = True
        self._unacknowledged.add(request)

    def acknowledge(self, request: int, *, idle: bool) -> bool:
        """The backend has taken or refused a request; returns whether it is known.

        Args:
            request: Its number.
            idle: Whether the backend had nothing else to do.
        """
        known = request in self._unacknowledged
        self._unacknowledged.discard(request)
        if known and idle:
            self._stale = False
        return known

    def tool(self, call: str, *, ended: bool) -> None:
        """A tool call has begun or ended."""
        if ended:
            self.tools.discard(call)
        else:
            self._stale = False  # the run that calls it is over
            self.tools.add(call)

    def note(self, now: float) -> None:
        """The model has written a note: the end of its run, unless a spoken part follows."""
        if self._stale:
            self._stale_until = now + _SAME_MESSAGE_SECONDS

    def take_stale(self, now: float) -> bool:
        """Whether a spoken output that arrives now is stale; the one after it is not."""
        over = self._stale_until is not None and now >= self._stale_until
        stale = self._stale and not over
        self._stale, self._stale_until = False, None
        return stale

    def idle(self) -> bool:
        """The backend reports that it has nothing to do; returns whether this is so.

        It is not while a request is on its way that the report does not count.
        """
        if self._idle_expected and self._unacknowledged:
            self._idle_expected = False
            return False
        return self.outstanding
