"""Requires an API key for the page and for starting a call."""

from __future__ import annotations

import base64
import binascii

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from pipecat_personaplex.asgi.responses import refuse
from pipecat_personaplex.server.auth import ApiKeys

# A session's id is known only to a client that has started it with a key.
_SESSIONS = "/sessions/"
_CHALLENGE = {"www-authenticate": 'Basic realm="personaplex", charset="UTF-8"'}


class KeyGuard:
    """ASGI middleware that answers requests without a valid key with 401.

    Programs send ``Authorization: Bearer KEY``. A browser asks its user for a name and a password:
    the name may be anything, the password is the key. It then sends both with each request of the
    page.

    Args:
        app: The application.
        keys: The keys that are accepted.

    Example::

        app.add_middleware(KeyGuard, keys=ApiKeys.read("keys.txt"))
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys):
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        kind = scope["type"]
        if kind in ("http", "websocket") and not scope["path"].startswith(_SESSIONS):
            key = _key_of(HTTPConnection(scope).headers.get("authorization", ""))
            if key is None or self._keys.client_of(key) is None:
                detail = "this bot needs a key: send the header Authorization: Bearer KEY"
                await refuse(kind, send, 401, detail, headers=_CHALLENGE)
                return
        await self._app(scope, receive, send)


def _key_of(authorization: str) -> str | None:
    scheme, _, value = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                return base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                return None
    return None
