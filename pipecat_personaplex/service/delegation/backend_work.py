"""What the backend is doing, as far as its events show."""

from __future__ import annotations

from typing import Literal

# Between a note or a tool call and the spoken part of the same message.
_SAME_MESSAGE_SECONDS = 0.05
# Between the failure of a run and what it had written by then.
_TORN_SECONDS = 0.5

Origin = Literal["run", "old run", "torn"]
"""Where a message comes from: a run of the backend's model that has every turn in view, one that
began before the newest turn, or one that has failed."""


class BackendWork:
    """Requests that the backend has, its tool calls, and which turn a message answers.

    Events and acknowledgements arrive in the order in which the backend sent them. A message is of
    an old run if it was written without the newest turn in view: it came before the backend
    acknowledged that turn, or from a run of the model that had begun before. A tool's result
    starts another run, which sees every request; otherwise the turn waits for the end of the old
    run.

    Attributes:
        outstanding: Whether an answer to a request is expected.
        heard: Whether a message or a tool call has followed the newest request.
        tools: Calls in flight.
    """

    def __init__(self) -> None:
        self.outstanding = False
        self.heard = False
        self.tools: set[str] = set()
        self._busy = False  # idle is still to be reported
        self._unacknowledged: dict[int, bool] = {}  # by number; whether it is a turn
        self._refused = False  # a turn, which is part of the next request
        self._idle_expected = False  # the work before the newest request goes on
        self._old_run = False  # in progress
        self._next_run = False  # the old one has ended, the next one has written nothing so far
        self._unreported = False  # the backend reports no end of the work in hand
        self._message_until = 0.0  # parts of the newest message arrive before
        self._message_is_old = False
        self._torn_until = 0.0

    @property
    def ends_unreported(self) -> bool:
        """Whether the work is over with the newest message, and no report of idleness follows."""
        return self._unreported and not self.tools

    def send(self, request: int, *, turn: bool) -> None:
        """A request is on its way.

        Args:
            request: Its number.
            turn: Whether it is a turn of the caller, which makes earlier answers stale.
        """
        self._idle_expected = self._busy
        self._unacknowledged[request] = turn
        self.outstanding = self._busy = True
        self.heard = self._unreported = False

    def acknowledge(self, request: int, *, idle: bool) -> None:
        """The backend has taken a request, and with it those that it had refused.

        Args:
            request: Its number; one that is not known has no effect.
            idle: Whether the backend had nothing else to do.
        """
        turn = self._unacknowledged.pop(request, None)
        if turn is None:
            return
        if idle:
            self._torn_until = 0.0
        if turn or self._refused:
            self._refused = False
            self._old_run, self._next_run = not idle and not self.tools, False
            self._message_until = 0.0

    def refuse(self, request: int) -> bool:
        """The backend has not taken a request; returns whether it is known."""
        turn = self._unacknowledged.pop(request, None)
        self._refused = self._refused or bool(turn)
        return turn is not None

    def tool(self, now: float, call: str, *, ended: bool) -> None:
        """A tool call has begun or ended."""
        self.heard, self._torn_until = True, 0.0
        if ended:
            self.tools.discard(call)
        else:
            self.tools.add(call)
            self._begin_message(now)
            self._next_run = False  # it follows the tool's result

    def note(self, now: float) -> Origin:
        """A note has arrived; a spoken part of the same message may follow."""
        if now < self._torn_until:
            return "torn"
        self._begin_message(now)
        return self._origin()

    def speak(self, now: float) -> Origin:
        """A spoken output has arrived; it ends the message."""
        origin = self.note(now)
        if origin != "torn":
            self._message_until = 0.0
        return origin

    def idle(self, *, works_on: bool | None) -> bool:
        """The backend reports that it has nothing to do; returns whether it has finished.

        It has not if a request is on its way: the report is of the work before. Nor has it if a
        turn has waited for the end of an old run: Pipecat's worker reports that end, and not that
        of the run that follows.

        Args:
            works_on: Whether another run follows, whose end it reports; None if that is unknown.
        """
        early = self._old_run or self._next_run if works_on is None else works_on
        self._old_run = self._next_run = False
        self._torn_until = 0.0
        if self._unacknowledged and self._idle_expected:
            self._idle_expected = early
            return False
        if early:
            self._unreported = works_on is None
            return False
        self._busy = False
        return self.outstanding

    def fail(self, now: float) -> bool:
        """A run has failed; returns whether a request is left that it had not seen."""
        self._torn_until = now + _TORN_SECONDS
        left = self._old_run or bool(self._unacknowledged)
        self._old_run, self._next_run = False, self._old_run
        return left

    def finish(self) -> None:
        """Expect no answers to the requests so far; tool calls and idleness are still followed."""
        self.outstanding = False
        self._unacknowledged.clear()

    def _begin_message(self, now: float) -> None:
        """Take a part of a message, which begins one unless it follows another part closely."""
        if now >= self._message_until:
            self._message_is_old = self._old_run
            self._old_run, self._next_run = False, self._old_run
        self._message_until = now + _SAME_MESSAGE_SECONDS

    def _origin(self) -> Origin:
        if self._message_is_old or self._refused or any(self._unacknowledged.values()):
            return "old run"
        self.heard = True
        return "run"
