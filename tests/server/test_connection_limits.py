"""Allowances of addresses, and which connection makes room, on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from socket import create_server

import pytest

from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.connection_limits import ConnectionLimits, address_key
from tests.helpers.servers import RunningServer, ServedFakeEngine, eventually


class Port:
    """A guarded listening socket whose clock is ``now``."""

    def __init__(self, stack: ExitStack, *limits: float):
        self.now = 0.0
        per_second, burst, most = limits
        self.limits = ConnectionLimits(per_second, burst, int(most), clock=lambda: self.now)
        self.listening = stack.enter_context(self.limits.guard(create_server(("127.0.0.1", 0))))
        self.listening.settimeout(10)
        self._stack = stack

    def connect(self, address: str = "127.0.0.1") -> tuple[socket.socket, socket.socket | None]:
        """Connect from a loopback address; return both ends, None for one that was refused."""
        client = self._stack.enter_context(
            socket.create_connection(self.listening.getsockname(), 10, (address, 0))
        )
        self.listening.settimeout(0.2)
        try:
            accepted = self._stack.enter_context(self.listening.accept()[0])
        except TimeoutError:
            assert client.recv(1) == b""
            return client, None
        return client, accepted


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def test_an_address_has_an_allowance_and_others_have_their_own(stack: ExitStack) -> None:
    port = Port(stack, 2, 3, 100)
    assert [port.connect()[1] is not None for _ in range(5)] == [True, True, True, False, False]
    assert port.connect("127.0.0.2")[1] is not None
    port.now += 1  # two more
    assert [port.connect()[1] is not None for _ in range(3)] == [True, True, False]
    assert port.limits.refused == 3


def test_without_an_allowance_every_connection_is_accepted(stack: ExitStack) -> None:
    port = Port(stack, 0, 0, 100)
    assert all(port.connect()[1] for _ in range(20))


def test_the_oldest_connection_that_is_no_websocket_makes_room(stack: ExitStack) -> None:
    port = Port(stack, 0, 0, 3)
    (websocket, upgraded), (second, _), (third, _) = (port.connect() for _ in range(3))
    assert upgraded is not None
    port.limits.upgraded(upgraded.fileno())
    assert port.connect("127.0.0.2")[1] is not None
    assert second.recv(1) == b""  # evicted
    for kept in (websocket, third):
        kept.settimeout(0.05)
        with pytest.raises(TimeoutError):
            kept.recv(1)
    assert port.limits.evicted == 1


def test_with_websockets_alone_a_new_connection_is_refused(stack: ExitStack) -> None:
    port = Port(stack, 0, 0, 1)
    _, upgraded = port.connect()
    assert upgraded is not None
    port.limits.upgraded(upgraded.fileno())
    assert port.connect()[1] is None
    upgraded.close()
    assert port.connect()[1] is not None


def test_an_address_with_many_connections_makes_room_for_itself(stack: ExitStack) -> None:
    """A client that opens connections without end cannot push out another client's."""
    port = Port(stack, 0, 0, 100)
    quiet, _ = port.connect("127.0.0.2")  # the oldest of all
    for _ in range(150):
        assert port.connect()[1] is not None
    quiet.settimeout(0.05)
    with pytest.raises(TimeoutError):
        quiet.recv(1)


def test_many_addresses_are_not_remembered_for_ever(stack: ExitStack) -> None:
    limits = ConnectionLimits(1, 1, 10)
    for number in range(10_000):
        limits._has_allowance(f"10.0.{number >> 8}.{number & 255}")
    assert len(limits._buckets) <= 4096


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
    ],
)
def test_what_counts_as_one_address(host: str, key: str) -> None:
    assert address_key(host) == key


def test_a_flood_is_refused_and_counted() -> None:
    config = ServerConfig(max_connections=8, address_rate=1)
    with RunningServer(ServedFakeEngine(), config) as server, ExitStack() as opened:
        for _ in range(40):
            opened.enter_context(server.tcp())
        eventually(lambda: server.runner.limits.refused >= 20)
        # Another address is served.
        other = opened.enter_context(
            socket.create_connection(
                ("127.0.0.1", int(server.url.rpartition(":")[2])), 10, ("127.0.0.9", 0)
            )
        )
        other.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while data := other.recv(65536):  # the connection ends after one response
            answer += data
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        assert b'personaplex_refusals_total{reason="address_rate"}' in answer
