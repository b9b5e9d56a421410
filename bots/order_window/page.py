"""A page that shows the newest orders while they grow, served beside the bot's own."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from bots.order_window.store import OrderStore

PAGE = "/orders"
_HTML = Path(__file__).with_name("page.html")
_SHOWN = 12


def add_order_page(app: FastAPI, store: OrderStore) -> None:
    """Serve the page at ``/orders``.

    The page reads ``/orders/data`` twice a second. It polls, because uvicorn would wait for an
    open stream when it stops. Both show what is ordered and nothing about the callers.

    Args:
        app: The app of Pipecat's runner.
        store: Where the orders are.
    """

    @app.get(PAGE, include_in_schema=False)
    async def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        html = _HTML.read_text(encoding="utf-8")
        policy = f"default-src 'none'; connect-src 'self'; style-src 'nonce-{nonce}'; "
        policy += f"script-src 'nonce-{nonce}'; base-uri 'none'; frame-ancestors 'self'"
        for tag in ("style", "script"):
            html = html.replace(f"<{tag}>", f'<{tag} nonce="{nonce}">')
        return HTMLResponse(html, headers={"content-security-policy": policy})

    @app.get(f"{PAGE}/data", include_in_schema=False)
    async def data() -> dict[str, Any]:
        orders = await store.run(store.latest, _SHOWN)
        return {
            "restaurant": store.restaurant,
            "orders": [order.as_message() for order in orders],
        }
