"""What the backend is doing, as far as its events show."""

from __future__ import annotations

# Between a note or a tool call and the spoken part of the same message.
_SAME_MESSAGE_SECONDS = 0.05


class BackendWork:
    """Requests that the backend has, its tool calls, and which turn an output answers.

    Events and acknowledgements arrive in the order in which the backend sent them. An output is
    stale if it was written without the newest turn in view: it came before the backend acknowledged
    that turn, or from a run of the model that had begun before. A tool's result starts another run,
    which sees every request.

    Attributes:
        outstanding: Whether an answer to a request is expected.
        tools: Calls in flight.
    """

    def __init__(self) -> None:
        self.outstanding = False
        self.tools: set[str] = set()
        self._busy = False  # idle is still to be reported
        self._unacknowledged: dict[int, bool] = {}  # by number; whether it is a turn
        self._idle_expected = False  # for the work before the newest request
        self._stale = False
        self._stale_until: float | None = None

    def send(self, request: int, *, turn: bool) -> None:
        """A request is on its way.

        Args:
            request: Its number.
            turn: Whether it is a turn of the caller, which makes earlier answers stale.
        """
        self._idle_expected = self._busy
        self._unacknowledged[request] = turn
        self.outstanding = self._busy = True

    def acknowledge(self, request: int, *, idle: bool) -> bool:
        """The backend has taken or refused a request; returns whether it is known.

        Args:
            request: Its number.
            idle: Whether the backend had nothing else to do.
        """
        turn = self._unacknowledged.pop(request, None)
        if turn:
            self._stale, self._stale_until = not idle and not self.tools, None
        return turn is not None

    def tool(self, now: float, call: str, *, ended: bool) -> None:
        """A tool call has begun or ended."""
        if ended:
            self.tools.discard(call)
        else:
            self.tools.add(call)
            self.end_run(now)

    def end_run(self, now: float) -> None:
        """The model's run ends: it has written a note or calls a tool. A spoken part may follow."""
        if self._stale:
            self._stale_until = now + _SAME_MESSAGE_SECONDS

    def take_stale(self, now: float) -> bool:
        """Whether a spoken output that arrives now is stale; one ends the run that wrote it."""
        if any(self._unacknowledged.values()):
            return True
        over = self._stale_until is not None and now >= self._stale_until
        stale = self._stale and not over
        self._stale, self._stale_until = False, None
        return stale

    def idle(self) -> bool:
        """The backend reports that it has nothing to do; returns whether it has finished.

        It has not if a request is on its way: the report is of the work before.
        """
        if self._unacknowledged and self._idle_expected:
            self._idle_expected = False
            return False
        self._busy = self._stale = False
        return self.outstanding

    def finish(self) -> None:
        """Expect no answers to the requests so far; tool calls and idleness are still followed."""
        self.outstanding = False
        self._unacknowledged.clear()
