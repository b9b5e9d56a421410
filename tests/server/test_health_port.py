"""Health checks and metrics at a port of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.runner import Address
from tests.helpers.servers import RunningServer, ServedFakeEngine, eventually

PAGES = ("/healthz", "/readyz", "/metrics")


@pytest.fixture
def server() -> Iterator[RunningServer]:
    address = Address(port=0, health_port=0)
    config = ServerConfig(max_connections=8, address_rate=1)
    with RunningServer(ServedFakeEngine(), config, address=address) as running:
        yield running


def test_the_pages_are_there_and_nowhere_else(server: RunningServer) -> None:
    for page in PAGES:
        assert httpx.get(server.runner.health_url + page).status_code == 200
        assert server.get(page).status_code == 404
    assert httpx.get(f"{server.runner.health_url}/v1/voices").status_code == 404
    assert server.get("/v1/voices").status_code == 200


def test_it_answers_while_the_clients_port_is_full(server: RunningServer) -> None:
    with ExitStack() as held:
        for _ in range(40):
            held.enter_context(server.tcp())
        eventually(lambda: server.runner.limits.refused > 0)
        assert httpx.get(f"{server.runner.health_url}/healthz", timeout=10).status_code == 200
    eventually(lambda: not server.connections)


def test_both_ports_close_when_the_server_stops(server: RunningServer) -> None:
    server.stop()
    assert server.wait_stopped()
    for url in (server.url, server.runner.health_url):
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/healthz")
