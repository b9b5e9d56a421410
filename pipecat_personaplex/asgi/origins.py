"""Which web pages may connect: guards against requests that other sites' pages send."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from pipecat_personaplex.asgi.origin_text import ANY_ORIGIN
from pipecat_personaplex.asgi.refusal_log import RefusalLog
from pipecat_personaplex.asgi.responses import refuse
from pipecat_personaplex.errors import AccessDenied

_OPTION = "--allowed-origins"  # of Pipecat's runner


class OriginGuard:
    """ASGI middleware that refuses HTTP requests and WebSockets of other sites' pages with 403.

    Args:
        app: The application.
        allowed: As for ``check_origin``.
        keys_required: As for ``check_origin``.
        acting: Paths whose GET requests do more than read. They have no ``Origin`` when a page of
            another site requests them, such as for a picture.
    """

    def __init__(
        self,
        app: ASGIApp,
        allowed: Collection[str],
        *,
        keys_required: bool = False,
        acting: Collection[str] = (),
    ):
        self._app = app
        self._allowed = frozenset(allowed)
        self._keys_required = keys_required
        self._acting = frozenset(acting)
        self._log = RefusalLog(f"its page is of another site; {_OPTION} can allow it")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        if scope["type"] in ("http", "websocket"):
            connection = HTTPConnection(scope)
            try:
                if scope["path"] in self._acting:
                    _check_site(connection, self._allowed)
                check_origin(
                    connection,
                    self._allowed,
                    keys_required=self._keys_required,
                    option=_OPTION,
                )
            except AccessDenied as error:
                self._log.add(scope)
                await refuse(scope["type"], send, 403, str(error))
                return
        await self._app(scope, receive, send)


def check_origin(
    connection: HTTPConnection, allowed: Collection[str], *, keys_required: bool, option: str
) -> None:
    """Refuse a browser whose page comes from another site.

    Requests without an ``Origin`` header do not come from a browser's page and pass.

    Args:
        connection: The request.
        allowed: Origins that may connect in addition to the server's own.
        keys_required: Whether the server accepts only clients with a key.
        option: The program's option that allows origins, for the error.

    Raises:
        AccessDenied: The page's origin is neither the server's own nor an allowed one.
    """
    origin = connection.headers.get("origin")
    if origin is None or ANY_ORIGIN in allowed or origin.lower() in allowed:
        return
    host = connection.headers.get("host", "").lower()
    is_own = bool(host) and origin.lower().partition("://")[2] == host
    # DNS rebinding: an attacker can point any host name at this machine, and a page of that name
    # then has the server's own origin. Keys stop such a page. Without keys, only an IP address or
    # localhost counts as the server's own: no attacker can serve a page under these names.
    if not is_own or not (keys_required or _is_address(host)):
        raise AccessDenied(
            f"pages of {origin[:100]} may not connect to this server unless {option} names them"
        )


def _check_site(connection: HTTPConnection, allowed: Collection[str]) -> None:
    """Refuse what a browser requests for a page of another site; a typed address passes."""
    if connection.headers.get("sec-fetch-site") == "cross-site" and ANY_ORIGIN not in allowed:
        raise AccessDenied("this address starts a call; pages of other sites may not request it")


def _is_address(host: str) -> bool:
    """Whether a lower-case ``Host`` header names an IP address or localhost."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True
