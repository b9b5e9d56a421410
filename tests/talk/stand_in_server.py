"""Stands in for a server: its page talks to a bot's page files and to this."""

from __future__ import annotations

import json
import time
from typing import Any

from playwright.sync_api import WebSocketRoute

from tests.talk.browsers import TalkPage


def _frame(piece: str) -> bytes:
    """80 ms of silence with a piece of text, as PROTOCOL.md lays them out."""
    text = piece.encode()
    return bytes(49) + bytes([len(text)]) + text + bytes(2 * 1920)


class StandInServer:
    """``/v1/session`` of ``personaplex serve``, as a page sees it: it opens each session at once.

    Attributes:
        frames: Frames that the page has sent.
        answers: Whether each frame gets one.
        pieces: Pieces of text of the next answers.
        refuses: Whether a new persona is refused.
        changes: When the page has sent each new persona.

    Args:
        page: A page that is not open yet.
        ready: Whether a session is ready at once.
        info: What the server tells about itself, in place of what the bot tells.
    """

    def __init__(self, page: TalkPage, *, ready: bool = True, **info: Any):
        self.frames = 0
        self.answers = True
        self.pieces: list[str] = []
        self.refuses = False
        self.changes: list[float] = []
        self._ready = ready
        told = page.page.request.get(f"{page.url}/api/info").json() | {"server": "serve"} | info
        page.page.route("**/api/info", lambda route: route.fulfill(json=told))
        page.page.route_web_socket("**/v1/session", self._connected)

    def send(self, **message: Any) -> None:
        """Send a message to the page that has connected last."""
        self._socket.send(json.dumps(message))

    def _connected(self, socket: WebSocketRoute) -> None:
        self._socket = socket
        socket.on_message(self._respond)
        self.send(type="hello")

    def _respond(self, text: str | bytes) -> None:
        if isinstance(text, bytes):
            self.frames += 1
            if self.answers:
                self._socket.send(_frame(self.pieces.pop(0) if self.pieces else ""))
            return
        message = json.loads(text)
        if message["type"] == "open":
            self.send(type="opened")
            if self._ready:
                self.send(type="ready")
        elif message["type"] == "prompt":
            self.changes.append(time.monotonic())
            refusal = {"message": "the engine is busy"} if self.refuses else {}
            self.send(type="prompted", id=message["id"], ok=not self.refuses, **refusal)
