"""The rate limit of audio, WebSocket messages and control frames."""

from __future__ import annotations


class TokenBucket:
    """Refills ``per_second`` tokens a second and stores at most ``burst``; starts full.

    Args:
        per_second: Tokens that are added in a second.
        burst: Tokens that can be taken at once.
        now: Current time in seconds; any clock that does not go back.

    Example::

        bucket = TokenBucket(per_second=50, burst=200, now=loop.time())
        if not bucket.take(loop.time()):
            transport.abort()
    """

    def __init__(self, per_second: float, burst: float, now: float):
        self._per_second = per_second
        self._burst = self._tokens = burst
        self._updated = now

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Take tokens; return False and take nothing if there are not enough."""
        refilled = self._tokens + (now - self._updated) * self._per_second
        self._tokens, self._updated = min(refilled, self._burst), now
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True
