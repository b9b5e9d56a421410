"""Sockets: many at once, malformed requests, silent and slow clients."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from loguru import logger
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.server import listen
from pipecat_personaplex.server import uvicorn_protocols as protocols
from pipecat_personaplex.server.auth import new_key
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.servers import (
    RunningServer,
    ServedFakeEngine,
    eventually,
)

UPGRADE = (
    b"GET /v1/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(ServedFakeEngine()) as running:
        yield running


def test_a_thousand_connections_at_once() -> None:
    """Each gets a response, accepted or refused, and nothing is left over."""
    config = ServerConfig(max_connections=300, address_rate=0)
    with RunningServer(ServedFakeEngine(), config) as server:
        files = len(os.listdir("/proc/self/fd"))
        with ExitStack() as stack:
            clients = []
            for _ in range(1000):
                client = stack.enter_context(server.tcp())
                client.sendall(UPGRADE)
                clients.append(client)
            answers = [client.recv(12) for client in clients]
        assert answers.count(b"HTTP/1.1 101") == 300
        assert answers.count(b"HTTP/1.1 503") == 700
        eventually(lambda: server.state.admission.connections == 0)
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= files)
        with server.connect() as ws:
            ws.recv(10)


def test_small_messages_are_not_delayed() -> None:
    """Nagle's algorithm delays the second of two until the first is acknowledged: 40 ms."""
    with ExitStack() as stack:
        listening = stack.enter_context(listen.open_socket("127.0.0.1", 0))
        stack.enter_context(socket.create_connection(listening.getsockname()))
        accepted = stack.enter_context(listening.accept()[0])
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    "head",
    [
        b"Host: [\r\nOrigin: http://[",
        b"Host: a b/\\?#@:99999\r\nAuthorization: Bearer \xff\xfe",
        b"Host: x\r\nSec-WebSocket-Protocol: bearer.\xff, ,,",
        b"Host: x\r\nAuthorization: " + b"x" * 20_000,
    ],
)
def test_a_malformed_header_is_refused_without_a_defect(head: bytes) -> None:
    logged: list[str] = []
    sink = logger.add(logged.append, level="ERROR")
    try:
        with RunningServer(ServedFakeEngine(), keys=[new_key("bot")[1]]) as server:
            for request in (
                UPGRADE.replace(b"Host: x", head),
                UPGRADE.replace(b"/v1/session", b"/api/chat?api_key=%ff%00&&=").replace(
                    b"Host: x", head
                ),
                b"GET /v1/voices HTTP/1.1\r\n" + head + b"\r\n\r\n",
                b"GET /v1/session HTTP/1.1\r\n" + head + b"\r\n\r\n",
            ):
                with server.tcp() as client:
                    client.sendall(request)
                    assert client.recv(12).startswith(b"HTTP/1.1 4")
    finally:
        logger.remove(sink)
    assert logged == []


# Clients that keep the server waiting.


def test_a_connection_without_a_request_is_closed() -> None:
    with RunningServer(ServedFakeEngine(), ServerConfig(hello_seconds=0.3)) as server:
        for said in (b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: "):
            with server.tcp() as client:
                client.sendall(said)
                try:
                    assert client.recv(100) == b""
                except ConnectionResetError:
                    pass
        # A second request that is never complete.
        with server.tcp() as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he")
            received = b""
            try:
                while more := client.recv(1000):
                    received += more
            except ConnectionResetError:
                pass
            assert received.startswith(b"HTTP/1.1 200")
        assert server.get("/healthz").status_code == 200


def test_an_endless_header_is_refused(server: RunningServer) -> None:
    with server.tcp() as client:
        try:
            client.sendall(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000)
            assert client.recv(100).startswith(b"HTTP/1.1 400")
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert server.get("/healthz").status_code == 200


def test_messages_have_a_maximum_size(server: RunningServer) -> None:
    with server.connect(max_size=None) as ws:
        ws.recv(10)
        with pytest.raises(ConnectionClosed) as closed:
            ws.send(b"x" * ((64 << 10) + 1))
            ws.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    with server.connect(max_size=None) as ws:
        ws.recv(10)
        with pytest.raises(ConnectionClosed) as closed:
            ws.send([b"x" * 1000] * 100)  # the same in fragments
            ws.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    eventually(lambda: server.state.admission.connections == 0)


def test_a_client_that_does_not_read_is_disconnected(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed too; close() alone would wait until it has read the buffer."""
    monkeypatch.setattr(protocols, "_CLOSE_SECONDS", 0.2)

    def flood(then: str) -> None:
        (connection,) = server.connections
        connection.transport.write(bytes(1 << 24))
        assert connection.transport.get_write_buffer_size() > 0
        if then == "no pong":
            connection.keepalive_timeout()
        else:
            connection.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})

    for then in ("no pong", "the endpoint ends"):
        with server.tcp() as client:
            client.sendall(UPGRADE)
            assert client.recv(12) == b"HTTP/1.1 101"
            server.call(lambda then=then: flood(then))
            eventually(lambda: not server.connections)
            eventually(lambda: server.state.admission.connections == 0)


def test_a_client_that_does_not_pong_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_PING_SECONDS", 0.1)
    monkeypatch.setattr(listen, "_PONG_SECONDS", 0.3)
    with RunningServer(ServedFakeEngine()) as server, server.tcp() as client:
        client.sendall(UPGRADE)
        received = b""
        while more := client.recv(4096):
            received += more
        assert b"\x89\x04" in received  # a ping
        assert received.endswith((1011).to_bytes(2, "big") + b"keepalive ping timeout")
        eventually(lambda: server.state.admission.connections == 0)


def test_a_name_with_both_kinds_of_addresses_uses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(listen, "getaddrinfo", lambda *_, **__: both)
    with listen.open_socket("localhost", 0) as listening:
        assert listening.family == socket.AF_INET
