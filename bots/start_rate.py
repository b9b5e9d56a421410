"""Limits how often calls are started: setting up a connection costs more than any frame of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from bots.offer_limit import OFFER
from pipecat_personaplex.asgi.refusal_log import RefusalLog
from pipecat_personaplex.asgi.responses import refuse
from pipecat_personaplex.asgi.token_bucket import TokenBucket

_STARTS = re.compile(rf"{OFFER.pattern}|/start|/daily|/daily-dialin-webhook|/ws(/.*)?", re.DOTALL)
# Each address: one call a second, and a whole office at once.
_PER_SECOND, _AT_ONCE = 1.0, 10.0
# All addresses together: a browser's connection takes 10 to 30 ms of computing time.
_ALL_PER_SECOND, _ALL_AT_ONCE = 5.0, 20.0
_MAX_ADDRESSES = 4096


class StartRate:
    """ASGI middleware that answers requests that start a call too often with 429.

    Args:
        app: The application.
        clock: Returns monotonic seconds.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] | None = None):
        self._app = app
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._log = RefusalLog("calls are started too often")
        self._all: TokenBucket | None = None
        self._addresses: dict[str, TokenBucket] = {}  # the latest last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        kind = scope["type"]
        starts = kind == "websocket" or scope.get("method") in ("GET", "POST")
        if starts and kind in ("http", "websocket") and _STARTS.fullmatch(scope["path"]):
            address = (scope.get("client") or ("unknown",))[0]
            if not self._allows(address):
                self._log.add(scope)
                detail = "too many calls are being started; try again in a moment"
                await refuse(kind, send, 429, detail, headers={"retry-after": "1"})
                return
        await self._app(scope, receive, send)

    def _allows(self, address: str) -> bool:
        now = self._clock()
        if self._all is None:
            self._all = TokenBucket(_ALL_PER_SECOND, _ALL_AT_ONCE, now)
        bucket = self._addresses.pop(address, None) or TokenBucket(_PER_SECOND, _AT_ONCE, now)
        self._addresses[address] = bucket
        if len(self._addresses) > _MAX_ADDRESSES:
            del self._addresses[next(iter(self._addresses))]
        return bucket.take(now) and self._all.take(now)
