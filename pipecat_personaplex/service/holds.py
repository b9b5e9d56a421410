"""The agent's holds: one of the application and one of the delegation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from pipecat_personaplex.interface import MAX_HOLD_SECONDS, SessionLike, checked_hold

Holder = Literal["application", "delegation"]
"""Who keeps the agent silent."""


class Holds:
    """Holds a session until the holds of both holders have ended; a session has one hold alone.

    Args:
        clock: Returns monotonic seconds.

    Example::

        holds = Holds()
        holds.hold(session, "application", 30.0)
        holds.hold(session, "delegation", 2.0)
        holds.release(session, "delegation")    # the rest of the 30 s
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._until: dict[Holder, float] = {}

    def hold(self, session: SessionLike, holder: Holder, seconds: float) -> None:
        """Hold the session; this replaces the hold of the same holder.

        Raises:
            PersonaPlexError: As ``SessionLike.hold``; then nothing has changed.
        """
        rest = self._rest(without=holder)
        # The session checks ``seconds``, but would not see a wrong value below the rest.
        session.hold(max(checked_hold(seconds), rest) if rest else seconds)
        self._until[holder] = self._clock() + seconds

    def release(self, session: SessionLike, holder: Holder) -> None:
        """End the hold of a holder.

        Raises:
            PersonaPlexError: As ``SessionLike.release``.
        """
        self._until.pop(holder, None)
        seconds = self._rest()
        if seconds:
            session.hold(seconds)
        else:
            session.release()

    def renew(self, session: SessionLike) -> None:
        """Hold another session for the rest of the holds; nothing if all have ended.

        Raises:
            PersonaPlexError: As ``SessionLike.hold``.
        """
        if rest := self._rest():
            session.hold(rest)

    def _rest(self, without: Holder | None = None) -> float:
        """Seconds until the last hold ends, 0 without one; ``without`` names a hold to ignore."""
        ends = (until for holder, until in self._until.items() if holder != without)
        rest = max(ends, default=-math.inf) - self._clock()
        return min(max(rest, 0.0), MAX_HOLD_SECONDS)  # the clock's sums may have been rounded up
