"""Verifies that a request comes from Twilio: the header ``X-Twilio-Signature``."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qsl

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from pipecat_personaplex.asgi.body_limit import MAX_BODY_BYTES, read_body, replay
from pipecat_personaplex.asgi.refusal_log import RefusalLog
from pipecat_personaplex.asgi.responses import refuse

_HEADER = "x-twilio-signature"
_FORM = "application/x-www-form-urlencoded"
_REFUSED = "the request has no valid signature of Twilio"
# GET requests without a body that only report the state of the bot.
_PUBLIC = ("GET", "/status")


def signature(token: str, url: str, form: Iterable[tuple[str, str]] = ()) -> str:
    """The signature that Twilio sends: HMAC-SHA1 of the URL and the sorted fields of the form.

    Args:
        token: The account's auth token.
        url: The URL as Twilio requested it, with its query.
        form: Fields of a POST request; a field that occurs twice with one value counts once.
    """
    signed = url + "".join(name + value for name, value in sorted(set(form)))
    digest = hmac.new(token.encode(), signed.encode("utf-8", "surrogatepass"), hashlib.sha1)
    return base64.b64encode(digest.digest()).decode()


def is_valid(
    given: str, token: str, urls: Sequence[str], form: Sequence[tuple[str, str]] = ()
) -> bool:
    """Whether a signature is that of one of these URLs; takes the same time for any signature."""
    bytes_given = given.encode("utf-8", "replace")
    found = False
    for url in urls:
        found |= hmac.compare_digest(signature(token, url, form).encode(), bytes_given)
    return found


class TwilioOnly:
    """ASGI middleware that refuses everything that Twilio has not signed with 403.

    Args:
        app: The application.
        token: The account's auth token.
        host: The public name of the bot, to which Twilio connects. A proxy may pass another
            ``Host`` on, and without TLS, so the request itself does not tell the URL.

    Example::

        app.add_middleware(TwilioOnly, token=os.environ["TWILIO_AUTH_TOKEN"], host="bot.example")
    """

    def __init__(self, app: ASGIApp, token: str, host: str):
        self._app = app
        self._token = token
        self._host = host
        self._log = RefusalLog(_REFUSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or pass it on."""
        kind = scope["type"]
        if kind not in ("http", "websocket") or (scope.get("method"), scope["path"]) == _PUBLIC:
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        form: list[tuple[str, str]] = []
        if kind == "http":
            body = await read_body(receive, MAX_BODY_BYTES)
            if body is None:
                await refuse(kind, send, 413, "the body is too large")
                return
            receive = replay(body, receive)
            if connection.headers.get("content-type", "").partition(";")[0].strip() == _FORM:
                form = _parse(body)
        given = connection.headers.get(_HEADER, "")
        if not is_valid(given, self._token, self._urls(connection), form):
            self._log.add(scope)
            await refuse(kind, send, 403, _REFUSED)
            return
        await self._app(scope, receive, send)

    def _urls(self, connection: HTTPConnection) -> list[str]:
        """The URLs that Twilio may have signed: with and without the port, as its clients do."""
        scope = connection.scope
        path: str = scope["path"]
        query = scope.get("query_string", b"").decode("latin-1")
        schemes = ("https",) if scope["type"] == "http" else ("wss", "https")
        hosts = [self._host] if ":" in self._host else [self._host, f"{self._host}:443"]
        # Twilio's documentation appends a slash to the URL of a WebSocket.
        paths = [path] if path.endswith("/") else [path, f"{path}/"]
        return [
            f"{scheme}://{host}{path}" + (f"?{query}" if query else "")
            for scheme in schemes
            for host in hosts
            for path in paths
        ]


def _parse(body: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(body.decode(), keep_blank_values=True)
    except ValueError:  # not UTF-8
        return []
