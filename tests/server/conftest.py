from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.servers import ServedFakeEngine
from tests.server.live import IMPATIENT, LiveServer


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[LiveServer, ServedFakeEngine]]:
    engine = ServedFakeEngine()
    with LiveServer(engine) as server:
        yield server, engine


@pytest.fixture
def server(shared: tuple[LiveServer, ServedFakeEngine]) -> Iterator[LiveServer]:
    """A server with the usual limits, whose engine knows nothing of the tests before."""
    server, engine = shared
    engine.sessions.clear()
    engine.ready = True
    engine.max_sessions = 4
    engine.on_open = lambda session: None
    engine.step.set()
    yield server
    server.check_clean()


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> ServedFakeEngine:
    """The engine of ``server``; without that, one for a server of the test's own."""
    if "server" not in request.fixturenames:
        return ServedFakeEngine()
    engine: ServedFakeEngine = request.getfixturevalue("shared")[1]
    request.getfixturevalue("server")
    return engine


@pytest.fixture(scope="module")
def victim() -> Iterator[LiveServer]:
    """A server for hostile clients; tests of them make it ``server``, by way of ``unharmed``."""
    with LiveServer(ServedFakeEngine(max_sessions=64), IMPATIENT) as server:
        yield server
