"""Clients that flood, do not read or do not finish, and the parts of uvicorn that are used."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from pipecat_personaplex.server import guarded_server, listen
from pipecat_personaplex.server import uvicorn_protocols as protocols
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.guarded_server import SERVER_USES
from pipecat_personaplex.server.runner import Address
from tests.helpers.servers import (
    RunningServer,
    ServedFakeEngine,
    eventually,
    self_signed,
    trusting,
)

UPGRADE = (
    b"GET /v1/session HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with RunningServer(ServedFakeEngine()) as running:
        yield running


def frame(opcode: int, payload: bytes = b"", *, last: bool = True) -> bytes:
    """A WebSocket frame from a client, masked with zeros."""
    return bytes([last << 7 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


FLOODS = {
    "pings": (b"", frame(9)),
    "pongs": (b"", frame(10)),
    "continuations": (frame(2, b"x", last=False), frame(0, last=False)),
    "empty messages": (b"", frame(2)),
    "small messages": (b"", frame(2, b"x")),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_cut_off(server: RunningServer, flood: str) -> None:
    """One client's flood in one iteration of the event loop must not block the other clients."""
    first, more = FLOODS[flood]
    handled = 0

    class Counting(protocols.TokenBucket):
        def take(self, now: float, tokens: float = 1.0) -> bool:
            nonlocal handled
            handled += 1
            return super().take(now, tokens)

    with pytest.MonkeyPatch.context() as patched, server.tcp() as client:
        patched.setattr(protocols, "TokenBucket", Counting)
        client.sendall(UPGRADE)
        assert client.recv(12) == b"HTTP/1.1 101"
        (connection,) = server.connections
        server.call(lambda: connection.data_received(first + more * 40_000))
        eventually(lambda: not server.connections, 5)
    assert 100 < handled < 3000


def test_pings_are_answered(server: RunningServer) -> None:
    with server.connect() as ws:
        ws.recv(10)
        assert all(ws.ping(b"%d" % i).wait(30) for i in range(50))


def test_pongs_for_a_client_that_does_not_read_do_not_accumulate(server: RunningServer) -> None:
    def ping() -> None:
        (connection,) = server.connections
        connection.transport.write(bytes(1 << 24))
        connection.data_received(frame(9))

    with server.tcp() as client:
        client.sendall(UPGRADE)
        assert client.recv(12) == b"HTTP/1.1 101"
        server.call(ping)
        eventually(lambda: not server.connections, 5)


@pytest.mark.parametrize("then", [b"", frame(8, b"\x03\xe8"), frame(1, b"\xff")])
def test_text_that_is_not_utf8_closes_without_a_log_line(
    server: RunningServer, caplog: pytest.LogCaptureFixture, then: bytes
) -> None:
    with server.tcp() as client:
        client.sendall(UPGRADE)
        assert client.recv(12) == b"HTTP/1.1 101"
        client.sendall(frame(1, b"\xff\xfe") + then)
        received = b""
        while more := client.recv(4096):
            received += more
        assert received.endswith((1000 if b"\x03\xe8" in then else 1007).to_bytes(2, "big"))
    eventually(lambda: server.state.admission.connections == 0)
    assert caplog.records == []


def test_a_response_that_is_not_read_is_aborted() -> None:
    with RunningServer(ServedFakeEngine(), ServerConfig(hello_seconds=0.5)) as server:
        with server.tcp() as client:
            client.settimeout(1)
            with pytest.raises((TimeoutError, ConnectionError)):
                while True:
                    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            eventually(lambda: not server.connections, 10)


def test_the_oldest_silent_connection_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silent connections cannot lock out other clients, and WebSockets are not closed for them."""
    monkeypatch.setattr(listen, "OTHER_CONNECTIONS", 2)
    config = ServerConfig(max_connections=1, hello_seconds=90)
    with RunningServer(ServedFakeEngine(), config) as server, server.connect() as ws:
        ws.recv(10)
        with ExitStack() as stack:
            silent = [stack.enter_context(server.tcp()) for _ in range(4)]
            for evicted in silent[:2]:
                assert evicted.recv(100) == b""
            eventually(lambda: len(server.connections) == 3)
            assert server.get("/healthz").status_code == 200
            assert silent[2].recv(100) == b""
            silent[3].settimeout(0.1)
            with pytest.raises(TimeoutError):
                silent[3].recv(100)
        ws.ping().wait(10)
        eventually(lambda: len(server.connections) == 1)  # its count is not lost
        assert server.runner.limits.evicted == 3


def test_uvicorn_has_the_attributes_that_are_used() -> None:
    """They are not public: a new uvicorn may remove them, and the overrides would not run."""
    config = uvicorn.Config(lambda: None, ws=WebSocketsSansIOProtocol, log_config=None)
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.new_event_loop()
    for made, used in (
        (H11Protocol(config, state, {}, loop), protocols.HTTP_USES),
        (WebSocketsSansIOProtocol(config, state, {}, loop), protocols.WEBSOCKET_USES),
    ):
        assert [name for name in used if not hasattr(made, name)] == []
    loop.close()
    assert "response_complete" in RequestResponseCycle.__init__.__code__.co_names
    server = uvicorn.Server(config)
    later = {*server._serve.__code__.co_names, *server.shutdown.__code__.co_names}
    assert [name for name in SERVER_USES if not hasattr(server, name) and name not in later] == []


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Address:
    certfile, keyfile = self_signed(tmp_path_factory.mktemp("certificate"))
    return Address(port=0, certfile=certfile, keyfile=keyfile)


@contextmanager
def tls(server: RunningServer, address: Address) -> Iterator[ssl.SSLSocket]:
    assert address.certfile is not None
    with server.tcp() as client:
        trust = trusting(address.certfile)
        with trust.wrap_socket(client, server_hostname="localhost") as secure:
            yield secure


@pytest.mark.parametrize("then", ["no pong", "the endpoint ends"])
def test_a_client_that_does_not_read_tls_is_disconnected(
    certificate: Address, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(protocols, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(guarded_server, "_TLS_CLOSE_SECONDS", 90)

    with RunningServer(ServedFakeEngine(), address=certificate) as server:

        def end() -> None:
            (connection,) = server.connections
            connection.transport.write(bytes(1 << 24))
            if then == "no pong":
                connection.keepalive_timeout()
            else:
                connection.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})

        with tls(server, certificate) as client:
            client.sendall(UPGRADE)
            assert client.recv(12) == b"HTTP/1.1 101"
            server.call(end)
            eventually(lambda: not server.connections, 5)


def test_a_refused_client_that_does_not_end_tls_is_disconnected(
    certificate: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn closes such a connection twice; asyncio would not abort it after that."""
    monkeypatch.setattr(protocols, "_CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(guarded_server, "_TLS_CLOSE_SECONDS", 90)
    with RunningServer(ServedFakeEngine(), address=certificate) as server:
        with tls(server, certificate) as client:
            client.sendall(UPGRADE.replace(b"/v1/session", b"/nowhere"))
            assert client.recv(12).startswith(b"HTTP/1.1 4")
            eventually(lambda: not server.connections, 5)


def test_a_client_must_start_and_end_tls_in_time(
    certificate: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_server, "_TLS_CLOSE_SECONDS", 0.5)
    config = ServerConfig(hello_seconds=3)
    with RunningServer(ServedFakeEngine(), config, address=certificate) as server:
        with server.tcp() as silent:
            try:
                assert silent.recv(100) == b""
            except ConnectionResetError:
                pass
        with tls(server, certificate) as client:
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            eventually(lambda: len(server.connections) == 1)
            eventually(lambda: not server.connections, 2.5)


def test_the_time_limit_of_requests_does_not_end_a_tls_websocket(
    certificate: Address, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(hello_seconds=60, idle_seconds=600)
    assert certificate.certfile is not None
    trust = trusting(certificate.certfile)
    with RunningServer(ServedFakeEngine(), config, address=certificate) as server:
        with server.connect(ssl=trust) as ws:
            ws.recv(10)
            ws.send('{"type": "open", "voice": "NATF2"}')
            ws.recv(10), ws.recv(10)
            server.advance(90)
            assert ws.ping().wait(30)
        eventually(lambda: not server.connections)
        server.advance(90)
        assert server.get("/healthz", verify=trust).status_code == 200  # timers have fired
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_tls(certificate: Address) -> None:
    assert certificate.certfile is not None
    with RunningServer(ServedFakeEngine(), address=certificate) as server:
        assert server.url.startswith("https://") and server.ws_url.startswith("wss://")
        trust = trusting(certificate.certfile)
        assert server.get("/healthz", verify=trust).status_code == 200
        with server.connect(ssl=trust) as ws:
            ws.recv(10)
        with pytest.raises(httpx.HTTPError):
            server.get("/healthz", verify=True)
