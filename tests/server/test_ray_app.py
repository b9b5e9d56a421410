"""The Ray deployment's additions to the application, without Ray's processes."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from pipecat_personaplex.errors import EngineFailed
from pipecat_personaplex.interface import EngineStats
from pipecat_personaplex.protocol.session_messages import SESSION_PATH, Hello

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
    # Ray's own modules, as they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HELLO = Hello(model="m", voices=["NATF2"], sessions=3, max_sessions=8, draining=False)


async def greet(websocket: WebSocket) -> None:
    await websocket.accept()
    for _ in range(2):
        await websocket.send_text(HELLO.model_dump_json())
    await websocket.send_bytes(b"sound")
    await websocket.close()


def test_slot_counts_are_hidden_only_in_the_hello_of_a_session() -> None:
    from pipecat_personaplex.server.ray_serve import HideSlotCounts

    app = Starlette(routes=[WebSocketRoute(path, greet) for path in (SESSION_PATH, "/other")])
    app.add_middleware(HideSlotCounts)
    hidden = HELLO.model_copy(update={"sessions": 0, "max_sessions": 0})
    for path, first in ((SESSION_PATH, hidden), ("/other", HELLO)):
        with TestClient(app).websocket_connect(path) as client:
            assert Hello.model_validate_json(client.receive_text()) == first
            assert Hello.model_validate_json(client.receive_text()) == HELLO
            assert client.receive_bytes() == b"sound"


async def full(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse as Ray's proxy does: with an HTTP response also for a WebSocket."""
    headers = [(b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b"full"})


def test_a_refused_websocket_gets_its_status() -> None:
    from pipecat_personaplex.server.ray_serve import proxy_middlewares

    (middleware,) = proxy_middlewares()
    client = TestClient(middleware.cls(full))
    assert client.get("/").status_code == 503
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(SESSION_PATH),
    ):
        pass
    assert (refused.value.status_code, refused.value.text) == (503, "full")
    assert refused.value.headers["retry-after"] == "1"


class _Gauge:
    value = 0.0

    def set(self, value: float) -> None:
        self.value = value


class _Engine:
    healthy = True
    stopped = 0

    def stats(self) -> Any:
        return SimpleNamespace(late_frames=7)

    def stop(self) -> None:
        self.stopped += 1


async def test_a_replica_reports_its_engines_health_and_stops_it() -> None:
    from pipecat_personaplex.server.ray_serve import EngineReplica

    replica: Any = object.__new__(EngineReplica)
    engine = replica._engine = _Engine()
    replica._resources = ExitStack()
    replica._resources.callback(engine.stop)
    gauge = _Gauge()
    replica._gauges = {"late_frames": gauge}
    await replica.check_health()
    assert gauge.value == 7
    engine.healthy = False
    with pytest.raises(EngineFailed):
        await replica.check_health()
    del replica
    assert engine.stopped == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": {"max_session": 3}}, "engine.*max_session"),
        ({"engine": None}, "engine"),
        ({"limits": None}, "limits"),
        ({"limits": {"max_conections": 3}}, "limits.*max_conections"),
        ({"limits": {"drain_seconds": 5}}, "limits.drain_seconds"),
        ({"limits": {"address_rate": 5}}, "limits.address_rate"),
        ({"log_level": "loud"}, "log_level"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], named: str) -> None:
    from pydantic import ValidationError

    from pipecat_personaplex.server.ray_serve import RayArgs

    with pytest.raises(ValidationError) as refused:
        RayArgs.model_validate({"model": "m", **options})
    assert re.search(named, str(refused.value), re.DOTALL)


def test_its_metrics_are_those_of_the_engine() -> None:
    from pipecat_personaplex.server.ray_serve import _METRICS

    assert set(_METRICS) <= {field.name for field in dataclasses.fields(EngineStats)}
