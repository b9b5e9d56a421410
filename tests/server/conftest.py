from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.logs import LogRecords, recorded
from tests.helpers.servers import ServedFakeEngine
from tests.server.live import IMPATIENT, LiveServer


@pytest.fixture
def log() -> Iterator[LogRecords]:
    """The log records from level INFO on, as the test makes them."""
    with recorded() as records:
        yield records


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[LiveServer, ServedFakeEngine]]:
    engine = ServedFakeEngine()
    with LiveServer(engine) as server:
        yield server, engine


@pytest.fixture
def server(shared: tuple[LiveServer, ServedFakeEngine]) -> Iterator[LiveServer]:
    """A shared server with default limits; its fake engine is reset for each test."""
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
    """The engine of ``server``; without that fixture, one for a server that the test starts."""
    if "server" not in request.fixturenames:
        return ServedFakeEngine()
    engine: ServedFakeEngine = request.getfixturevalue("shared")[1]
    request.getfixturevalue("server")
    return engine


@pytest.fixture(scope="module")
def victim() -> Iterator[LiveServer]:
    """A server for hostile clients; test modules wrap it with ``unharmed``."""
    with LiveServer(ServedFakeEngine(max_sessions=64), IMPATIENT) as server:
        yield server
