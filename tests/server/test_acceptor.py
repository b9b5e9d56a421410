"""Connections begin in turn: a burst of one address delays neither sessions nor other addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import create_connection, create_server

import pytest

from pipecat_personaplex.server import acceptor
from pipecat_personaplex.server.acceptor import Acceptor
from pipecat_personaplex.server.connection_limits import ConnectionLimits

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection at once, then ten a second."""
    monkeypatch.setattr(acceptor, "STARTS_AT_ONCE", 1.0)
    monkeypatch.setattr(acceptor, "STARTS_PER_SECOND", 10.0)


class Port:
    """Answers each connection with one byte when it begins."""

    def __init__(self, max_connections: int) -> None:
        self.limits = ConnectionLimits(0, 0, max_connections)
        self.listening = self.limits.guard(create_server(("127.0.0.1", 0)))
        self.begun: list[str] = []
        self._clients: list[Streams] = []

    def made(self) -> asyncio.Protocol:
        port = self

        class Greeting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                port.begun.append(transport.get_extra_info("peername")[0])
                transport.write(b"x")  # type: ignore[attr-defined]

        return Greeting()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Acceptor]:
        serving = Acceptor(self.listening, self.made)
        serving.start()
        try:
            yield serving
        finally:
            serving.close()
            await serving.wait_closed()
            for _, writer in self._clients:
                writer.transport.abort()

    async def connect(self, address: str = "127.0.0.1") -> asyncio.StreamReader:
        host, number = self.listening.getsockname()
        client = await asyncio.open_connection(host, number, local_addr=(address, 0))
        self._clients.append(client)
        return client[0]


async def test_addresses_take_turns() -> None:
    port = Port(100)
    async with port.serving():
        for _ in range(6):
            await port.connect()
        other = await port.connect("127.0.0.2")
        assert await asyncio.wait_for(other.read(1), 10) == b"x"
        # The first address has begun one at once and at most one while the other waited.
        assert port.begun.index("127.0.0.2") <= 2
        async with asyncio.timeout(10):
            while len(port.begun) < 7:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_one_that_waits_makes_room_like_any_other() -> None:
    port = Port(3)
    async with port.serving():
        clients = [await port.connect() for _ in range(5)]
        assert await asyncio.wait_for(clients[0].read(1), 10) == b"x"
        evicted = await asyncio.wait_for(clients[1].read(), 10)
        assert evicted == b""
        assert await asyncio.wait_for(clients[4].read(1), 10) == b"x"
    assert port.limits.evicted == 2


async def test_close_ends_those_that_wait() -> None:
    port = Port(100)
    async with port.serving():
        clients = [await port.connect() for _ in range(5)]
        assert await asyncio.wait_for(clients[0].read(1), 10) == b"x"
    assert [await asyncio.wait_for(client.read(), 10) for client in clients[2:]] == [b""] * 3
    assert not port.limits._connections.keys() - {*port.limits._waiting}


async def test_a_process_without_descriptors_accepts_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.01)
    port = Port(100)
    async with port.serving() as serving:
        loop = asyncio.get_running_loop()
        accept, failures = loop.sock_accept, iter([OSError(24, "Too many open files")])

        async def failing(listening: object) -> object:
            for error in failures:
                raise error
            return await accept(listening)  # type: ignore[arg-type]

        monkeypatch.setattr(serving._loop, "sock_accept", failing)
        await port.connect()  # accepted by the call that waits already
        client = await port.connect()
        assert await asyncio.wait_for(client.read(1), 10) == b"x"
        assert next(failures, None) is None


async def test_a_connection_that_arrives_while_it_closes_is_no_error() -> None:
    port, errors = Port(100), []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    async with port.serving() as serving:
        await asyncio.sleep(0.05)  # it waits for connections
        # Both happen in the next iteration of the loop, in this order.
        loop.call_soon(serving.close)
        client = create_connection(port.listening.getsockname())
        await serving.wait_closed()
        client.close()
    assert not errors
