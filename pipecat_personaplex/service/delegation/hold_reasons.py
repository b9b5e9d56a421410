"""Why the agent is held, and what the session has to know of it."""

from __future__ import annotations

from typing import Literal

from pipecat_personaplex.interface import MAX_HOLD_SECONDS
from pipecat_personaplex.service.delegation.delegation_actions import Action, HoldFor, Release

Reason = Literal["caller", "decision", "work", "speech"]
"""Why the agent is held; see ``DelegationState``."""

_RENEW_SECONDS = 5.0  # before a hold of the session ends


class HoldReasons:
    """Holds the agent while there is a reason. Each reason ends by itself.

    A hold begins in a gap of the agent's own words, so that it cuts no sentence.

    Attributes:
        agent_speaks: Whether the model speaks words of its own.
    """

    def __init__(self) -> None:
        self.agent_speaks = False
        self._until: dict[Reason, float] = {}
        self._held_until: float | None = None  # as the session was told last
        self._session_until = 0.0  # when the session's hold ends by itself

    def __contains__(self, reason: Reason) -> bool:
        return reason in self._until

    @property
    def held(self) -> bool:
        """Whether the agent is held now."""
        return self._held_until is not None

    @property
    def deadline(self) -> float | None:
        """When ``settle`` has to be called again, at the latest."""
        times = list(self._until.values())
        if self._held_until is not None and self._held_until > self._session_until:
            times.append(self._session_until - _RENEW_SECONDS)
        return min(times, default=None)

    def set(self, reason: Reason, until: float) -> None:
        """Hold for this reason until this time, which replaces the one that was set before."""
        self._until[reason] = until

    def drop(self, *reasons: Reason) -> None:
        """Remove reasons that have ended."""
        for reason in reasons:
            self._until.pop(reason, None)

    def settle(self, now: float) -> list[Action]:
        """Remove what has ended by itself; returns what the session has to be told."""
        self._until = {reason: until for reason, until in self._until.items() if until > now}
        until = max(self._until.values(), default=None)
        if until is None:
            was_held, self._held_until = self.held, None
            return [Release()] if was_held else []
        if self.agent_speaks and not self.held:
            return []  # in the next gap
        renew = until > self._session_until and self._session_until - now <= _RENEW_SECONDS
        if until == self._held_until and not renew:
            return []
        self._held_until = until
        seconds = min(until - now, MAX_HOLD_SECONDS)
        self._session_until = now + seconds
        return [HoldFor(seconds)]
