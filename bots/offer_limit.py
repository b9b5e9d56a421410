"""Refuses WebRTC offers and candidates that no browser sends, before they reach aiortc."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from pipecat_personaplex.asgi.body_limit import MAX_BODY_BYTES, read_body, replay
from pipecat_personaplex.asgi.refusal_log import RefusalLog
from pipecat_personaplex.asgi.responses import refuse
from pipecat_personaplex.errors import BadMessage
from pipecat_personaplex.talk.offers import MAX_CANDIDATES, check_offer

OFFER = re.compile(r"/api/offer|/sessions/.*api/offer", re.DOTALL)
"""Paths of offers and candidates; behind a session, the runner looks at the end of the path."""

_MAX_CONNECTIONS = 4096


class OfferLimit:
    """ASGI middleware that answers 400 to offers and candidates that are larger than any browser's.

    Parsing an offer of 64 KiB takes aiortc one second, and all calls wait meanwhile. It sends
    packets to each candidate's address.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp):
        self._app = app
        self._log = RefusalLog("its WebRTC offer is too large")
        # Candidates that have been sent for a connection, the latest connection last.
        self._candidates: OrderedDict[str, int] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        method = scope.get("method")
        if method not in ("POST", "PATCH") or not OFFER.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        body = await read_body(receive, MAX_BODY_BYTES) or b""
        try:
            self._check(method, _object(body))
        except BadMessage as error:
            self._log.add(scope)
            await refuse("http", send, 400, str(error))
            return
        await self._app(scope, replay(body, receive), send)

    def _check(self, method: str, message: dict[str, Any]) -> None:
        if method == "POST":
            if isinstance(sdp := message.get("sdp"), str):
                check_offer(sdp)
            return
        candidates, connection = message.get("candidates"), message.get("pc_id")
        if not isinstance(candidates, list) or not isinstance(connection, str):
            return  # the runner refuses it
        count = self._candidates.pop(connection, 0) + len(candidates)
        self._candidates[connection] = count
        if len(self._candidates) > _MAX_CONNECTIONS:
            self._candidates.popitem(last=False)
        if count > MAX_CANDIDATES:
            raise BadMessage(f"a connection may have {MAX_CANDIDATES} candidates")


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; empty for anything else, which the runner refuses."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
