"""Hostile and broken connections: other clients are not affected, and nothing is left over."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.server import websocket as websocket_module
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.servers import ServedFakeEngine
from tests.server.clients import SessionClient
from tests.server.live import MANY, OPEN, LiveServer, call, frame, open_files, unharmed, websocket

pytestmark = pytest.mark.realtime

BURST = 1_000


@pytest.fixture
def server(victim: LiveServer) -> Iterator[LiveServer]:
    yield from unharmed(victim)


# Size, and floods.


@pytest.mark.parametrize("path", ["/v1/session", "/api/chat"])
@pytest.mark.parametrize("message", ["x" * 10_000_000, bytes(10_000_000)], ids=["text", "binary"])
def test_ten_megabytes(server: LiveServer, path: str, message: str | bytes) -> None:
    with websocket(server, path) as ws:
        with suppress(ConnectionClosed, OSError):
            ws.send(message)
        with suppress(TimeoutError, ConnectionClosed):
            while True:
                ws.recv(5)
        # The server closes before it has read all; its close code may be lost.
        assert ws.close_code in (1009, 1006)


def test_a_flood_does_not_delay_other_clients(server: LiveServer) -> None:
    """One client sends small messages as fast as possible while another makes calls."""
    with websocket(server, "/v1/session") as flood:
        flood.recv(10)
        flood.send(OPEN)
        sock = flood.socket
        flood_of_them = client_frame(b'{"type":"stats"}', text=True) * 4_000
        sock.setblocking(False)
        with suppress(OSError):  # the network is full, or the server has closed the connection
            while True:
                sock.send(flood_of_them)
        slowest = 0.0
        for _ in range(5):
            started = time.monotonic()
            call(server)
            slowest = max(slowest, time.monotonic() - started)
        print(f"\na call during a flood: {slowest * 1e3:.0f} ms at most")
        assert slowest < 5
        with suppress(OSError):  # it is closed by now
            sock.setblocking(True)
        sock.close()


def client_frame(payload: bytes, *, text: bool = False) -> bytes:
    """A WebSocket frame by hand, masked with zeros."""
    size = struct.pack(">H", len(payload))
    return bytes([0x81 if text else 0x82, 0x80 | 126]) + size + bytes(4) + payload


# Connections that stop half way through.


def raw(server: LiveServer, data: bytes = b"", *, window: int = 0) -> socket.socket:
    """Connect and send data; what follows a request is sent after the upgrade."""
    sock = socket.socket()
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    sock.settimeout(20)
    sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    request, end, rest = data.partition(b"\r\n\r\n")
    sock.sendall(request + end)
    if rest:
        assert sock.recv(12) == b"HTTP/1.1 101"
        sock.sendall(rest)
    return sock


def upgrade(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def test_half_open_connections(server: LiveServer) -> None:
    before = open_files()
    chat, session = upgrade("/api/chat"), upgrade("/v1/session")
    opening = client_frame(OPEN.encode(), text=True)
    beginnings = [b"", b"G", session[:40], session, session + opening[:3], session + opening]
    beginnings += [chat, chat + opening[:3], chat + client_frame(b"\x01OggS")]
    socks = [raw(server, beginning) for beginning in beginnings for _ in range(5)]
    call(server)
    # They never read and never respond to a ping or a close: the server drops all of them.
    server.check_clean()
    server.wait_until(lambda: open_files() <= before + len(socks))
    for sock in socks:
        sock.close()


def test_damaged_requests(server: LiveServer) -> None:
    request = upgrade("/v1/session")

    @settings(MANY, max_examples=40)
    @given(st.data())
    def case(data: st.DataObject) -> None:
        spoilt = bytearray(request)
        for _ in range(data.draw(st.integers(0, 5))):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        rest = data.draw(st.binary(max_size=200))
        with raw(server) as sock, suppress(OSError):
            sock.sendall(bytes(spoilt) + rest)
            sock.settimeout(0.02)
            sock.recv(4_096)

    case()


def test_slow_readers(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_module, "_SEND_SECONDS", 1.0)
    before = open_files()
    opening = upgrade("/v1/session") + client_frame(OPEN.encode(), text=True)
    socks = [raw(server, opening, window=4_096) for _ in range(10)]
    server.wait_until(lambda: server.sessions == 10)
    for sequence in range(5_000):
        # Faster than the network holds, as fast as the engine answers.
        for sock in socks:
            with suppress(OSError):
                sock.sendall(client_frame(frame(sequence)))
        if not server.sessions:
            break
    assert server.sessions == 0
    call(server)
    server.check_clean()
    server.wait_until(lambda: open_files() <= before + len(socks))
    for sock in socks:
        sock.close()


# All at once.


async def arrive(server: LiveServer, path: str) -> tuple[float, bytes]:
    """Connect; return the time until the server's first bytes, and these bytes."""
    port = int(server.url.rpartition(":")[2])
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(upgrade(path))
        answer = await reader.readuntil(b"\r\n\r\n")
        return time.monotonic() - started, answer[:12]
    finally:
        writer.transport.abort()


def many_files() -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * BURST if hard == resource.RLIM_INFINITY else min(4 * BURST, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@pytest.mark.parametrize("max_connections", [2 * BURST, 50])
async def test_a_thousand_connects_in_a_burst(max_connections: int) -> None:
    many_files()
    config = ServerConfig(max_connections=max_connections, resume_seconds=0.2, address_rate=0)
    with LiveServer(ServedFakeEngine(max_sessions=4), config) as server:
        before = open_files()
        async with SessionClient.opened(server.ws_url) as caller:
            burst = asyncio.gather(*(arrive(server, "/v1/session") for _ in range(BURST)))
            waits = []
            while not burst.done():
                started = time.monotonic()
                await caller.push()
                await caller.frame()
                waits.append(time.monotonic() - started)
                await asyncio.sleep(0.05)
            arrivals = await burst
            await caller.say("close")
            await caller.ended()
        seconds = [wait for wait, _ in arrivals]
        words = {word: sum(got == word for _, got in arrivals) for _, word in arrivals}
        print(
            f"\n{BURST} connects, room for {max_connections}: {words}, first word after p50 "
            f"{np.median(seconds):.2f} s, p99 {np.percentile(seconds, 99):.2f} s; "
            f"a caller's frame took {max(waits) * 1e3:.0f} ms at most"
        )
        assert set(words) <= {b"HTTP/1.1 101", b"HTTP/1.1 503"}
        assert (b"HTTP/1.1 503" in words) == (max_connections < BURST)
        server.check_clean()
        server.wait_until(lambda: open_files() <= before)
