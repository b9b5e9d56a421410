"""Responses that middleware sends in place of the application."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.types import Send


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a complete HTTP response.

    Args:
        send: The request's ``send``.
        status: HTTP status.
        body: The whole body.
        content_type: Its type.
        headers: Further headers.
    """
    fields = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def refuse(
    scope_type: str, send: Send, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> None:
    """Refuse a request with a JSON body that says why; a WebSocket before its upgrade.

    Args:
        scope_type: ``"http"`` or ``"websocket"``.
        send: The request's ``send``.
        status: HTTP status; a refused WebSocket gets 403 in any case.
        detail: One sentence for the client.
        headers: Further headers.
    """
    if scope_type == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": detail[:100]})
        return
    await respond(send, status, json.dumps({"detail": detail}).encode(), headers=headers)
