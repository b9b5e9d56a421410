"""Logs refused requests without letting strangers fill the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger
from starlette.types import Scope

_SECONDS = 10.0


class RefusalLog:
    """Logs the first refusal of a kind at once, and further ones as a number every 10 s.

    Args:
        reason: Why these requests are refused.
        clock: Returns monotonic seconds.

    Example::

        log = RefusalLog("no valid signature")
        log.add(scope)
    """

    def __init__(self, reason: str, clock: Callable[[], float] = time.monotonic):
        self._reason = reason
        self._clock = clock
        self._logged = float("-inf")
        self._unlogged = 0

    def add(self, scope: Scope) -> None:
        """Count a refused request."""
        now = self._clock()
        self._unlogged += 1
        if now - self._logged < _SECONDS:
            return
        client = (scope.get("client") or ("unknown",))[0]
        more = f", and {self._unlogged - 1} more before it" if self._unlogged > 1 else ""
        logger.warning("request refused: client {}{}: {}", client, more, self._reason)
        self._logged, self._unlogged = now, 0
