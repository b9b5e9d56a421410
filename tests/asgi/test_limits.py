"""The middleware that bounds bodies, WebSocket messages and origins, around small applications."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipecat_personaplex.asgi.body_limit import BodyLimit
from pipecat_personaplex.asgi.origin_text import origin_of
from pipecat_personaplex.asgi.origins import OriginGuard
from pipecat_personaplex.asgi.websocket_limit import WebSocketLimit


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds with the body, and then waits for the client's end as Starlette does."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def client(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860")


async def chunks(size: int, count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


class TestBodies:
    async def test_a_body_up_to_the_limit_passes(self) -> None:
        async with client(BodyLimit(echo, 1000)) as http:
            assert (await http.post("/", content=b"x" * 1000)).content == b"x" * 1000
            assert (await http.post("/", content=chunks(100, 10))).content == b"x" * 1000
            assert (await http.get("/")).content == b""

    @pytest.mark.parametrize("size", [1001, 10**7])
    async def test_a_larger_one_gets_413(self, size: int) -> None:
        async with client(BodyLimit(echo, 1000)) as http:
            response = await http.post("/", content=b"x" * size)
        assert response.status_code == 413 and "1000 bytes" in response.json()["detail"]

    async def test_a_path_may_have_a_limit_of_its_own(self) -> None:
        async with client(BodyLimit(echo, 1000, {"/voices": 4096})) as http:
            assert (await http.post("/voices", content=b"x" * 4096)).status_code == 200
            assert (await http.post("/other", content=b"x" * 1001)).status_code == 413
            response = await http.post("/voices", content=b"x" * 4097)
        assert response.status_code == 413 and "4 KiB" in response.json()["detail"]

    async def test_large_ones_are_served_four_at_once(self) -> None:
        begun, going_on = asyncio.Semaphore(0), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            begun.release()
            await going_on.wait()
            await echo(scope, receive, send)

        async with client(BodyLimit(slow, 1000, {"/voices": 4096})) as http:
            four = [asyncio.create_task(http.post("/voices", content=b"x")) for _ in range(4)]
            for _ in four:
                await begun.acquire()
            fifth = await http.post("/voices", content=b"x")
            assert fifth.status_code == 503 and fifth.headers["retry-after"] == "5"
            going_on.set()
            assert [(await post).status_code for post in four] == [200] * 4
            assert (await http.post("/voices", content=b"x")).status_code == 200

    async def test_a_chunked_one_is_not_read_to_its_end(self) -> None:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield b"x" * 100

        async with client(BodyLimit(echo, 1000)) as http:
            assert (await http.post("/", content=endless())).status_code == 413
        assert read < 20

    @pytest.mark.parametrize("length", [b"-1", b"abc", b"1e3", b"9" * 5000])
    async def test_a_length_that_is_no_number_gets_413(self, length: bytes) -> None:
        sent: list[Message] = []
        scope = {"type": "http", "headers": [(b"content-length", length)]}

        async def receive() -> Message:
            raise AssertionError("the body must not be read")

        async def send(message: Message) -> None:
            sent.append(message)

        await BodyLimit(echo)(scope, receive, send)
        assert sent[0]["status"] == 413


class Socket:
    """A WebSocket whose client has sent all its messages already."""

    def __init__(self, *texts: str, path: str = "/ws", headers: dict[str, str] | None = None):
        self.waiting: list[Message] = [{"type": "websocket.receive", "text": t} for t in texts]
        self.sent: list[Message] = []
        fields = [(n.encode(), v.encode()) for n, v in (headers or {}).items()]
        self.scope: dict[str, Any] = {"type": "websocket", "path": path, "headers": fields}

    async def receive(self) -> Message:
        return self.waiting.pop(0) if self.waiting else {"type": "websocket.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


async def count(app: type[WebSocketLimit], socket: Socket, **limits: Any) -> int:
    """How many messages reach an application that goes on sending."""
    received = 0

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal received
        while (await receive())["type"] == "websocket.receive":
            received += 1
        await send({"type": "websocket.send", "text": "late"})

    await app(application, **limits)(socket.scope, socket.receive, socket.send)
    return received


class TestWebSockets:
    async def test_messages_within_the_limits_pass(self) -> None:
        socket = Socket(*["x" * 100] * 50)
        assert await count(WebSocketLimit, socket, max_bytes=100, at_once=50) == 50
        assert [message["type"] for message in socket.sent] == ["websocket.send"]

    async def test_a_large_message_closes_the_connection(self) -> None:
        socket = Socket("x", "x" * 101, "x")
        assert await count(WebSocketLimit, socket, max_bytes=100) == 1
        assert [message.get("code") for message in socket.sent] == [1009]

    async def test_a_flood_closes_the_connection(self) -> None:
        socket = Socket(*["x"] * 10_000)
        assert 500 <= await count(WebSocketLimit, socket) <= 700
        assert [message.get("code") for message in socket.sent] == [1008]


class TestOrigins:
    @pytest.mark.parametrize(
        ("origin", "keys", "status"),
        [
            (None, False, 200),
            ("http://127.0.0.1:7860", False, 200),
            ("https://friend.example", False, 200),
            ("https://evil.example", False, 403),
            ("null", False, 403),
            ("http://127.0.0.1:1", False, 403),
        ],
    )
    async def test_a_foreign_page_is_refused(
        self, origin: str | None, keys: bool, status: int
    ) -> None:
        guard = OriginGuard(echo, ["https://friend.example"], keys_required=keys)
        headers = {} if origin is None else {"Origin": origin}
        async with client(guard) as http:
            response = await http.post("/", headers=headers)
        assert response.status_code == status
        socket = Socket(
            headers={"host": "127.0.0.1:7860", **{k.lower(): v for k, v in headers.items()}}
        )

        async def accept(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})

        app = OriginGuard(accept, ["https://friend.example"], keys_required=keys)
        await app(socket.scope, socket.receive, socket.send)
        expected = "websocket.accept" if status == 200 else "websocket.close"
        assert socket.sent[0]["type"] == expected

    @pytest.mark.parametrize(
        ("address", "origin"),
        [
            ("https://Talk.Example.com/", "https://talk.example.com"),
            ("HTTPS://talk.example.com:443/agent/", "https://talk.example.com"),
            ("http://localhost:80", "http://localhost"),
            ("https://anna:secret@talk.example.com:8443/?a=1", "https://talk.example.com:8443"),
            ("http://talk.example.com:443", "http://talk.example.com:443"),
            ("https://[2001:DB8::1]:443/", "https://[2001:db8::1]"),
        ],
    )
    def test_the_origin_of_an_address_is_as_browsers_send_it(
        self, address: str, origin: str
    ) -> None:
        assert origin_of(urlsplit(address)) == origin

    async def test_rebinding_needs_a_key(self) -> None:
        headers = {"Host": "rebound.example", "Origin": "http://rebound.example"}
        for keys, status in ((False, 403), (True, 200)):
            async with client(OriginGuard(echo, [], keys_required=keys)) as http:
                response = await http.get("/", headers=headers)
            assert response.status_code == status
            if status == 403:
                assert "rebound.example" in json.loads(response.content)["detail"]
