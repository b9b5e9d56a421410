"""What lies between a browser and a bot elsewhere: a proxy below a path, and a STUN server."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType
from typing import Self

from aiohttp import ClientSession, WSMsgType, web
from aioice import stun

PREFIX = "/kernel/proxy"
# Headers that concern one connection, so that a proxy does not forward them.
_HOP_BY_HOP = {"connection", "content-encoding", "content-length", "host", "transfer-encoding"}


class Proxy:
    """Serves another server of this machine below ``PREFIX``, as a notebook's proxy does.

    It removes the prefix and replaces the ``Host`` header.

    Args:
        port: The other server's port on 127.0.0.1.
        websockets: Whether WebSockets get through.
    """

    def __init__(self, port: int, *, websockets: bool):
        self._target = f"localhost:{port}"
        self._websockets = websockets
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://localhost:{self._socket.getsockname()[1]}{PREFIX}/"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        async with ClientSession() as self._session:
            app = web.Application(client_max_size=16 << 20)
            app.router.add_route("*", PREFIX + "/{path:.*}", self._forward)
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            await web.SockSite(runner, self._socket).start()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        address = f"{self._target}/{request.match_info['path']}?{request.query_string}"
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if not self._websockets:
                return web.Response(status=400)
            return await self._bridge(request, address)
        async with self._session.request(
            request.method, f"http://{address}", headers=headers, data=await request.read()
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    async def _bridge(self, request: web.Request, address: str) -> web.WebSocketResponse:
        browser = web.WebSocketResponse()
        await browser.prepare(request)
        origin = request.headers.get("Origin")
        async with self._session.ws_connect(f"ws://{address}", origin=origin) as bot:
            both = [(browser, bot), (bot, browser)]
            tasks = [asyncio.create_task(_copy(source, target)) for source, target in both]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        await browser.close()
        return browser


async def _copy(source: web.WebSocketResponse, target: web.WebSocketResponse) -> None:
    async for message in source:
        if message.type == WSMsgType.BINARY:
            await target.send_bytes(message.data)
        elif message.type == WSMsgType.TEXT:
            await target.send_str(message.data)


class StunServer:
    """Tells who connects the address from which it does, on a free UDP port of 127.0.0.1."""

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"stun:127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while self._socket.fileno() != -1:
            try:
                data, sender = self._socket.recvfrom(2048)
                request = stun.parse_message(data)
            except OSError:
                return  # closed
            except ValueError:
                continue
            answer = stun.Message(
                message_method=request.message_method,
                message_class=stun.Class.RESPONSE,
                transaction_id=request.transaction_id,
            )
            answer.attributes["XOR-MAPPED-ADDRESS"] = sender
            self._socket.sendto(bytes(answer), sender)
