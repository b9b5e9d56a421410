"""The server's HTTP pages and the admission of WebSockets, over real sockets."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from loguru import logger
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import (
    AccessDenied,
    CheckpointError,
    EngineFailed,
    EngineStopped,
    LimitReached,
    PersonaPlexError,
)
from pipecat_personaplex.protocol.session_messages import Error, parse_server, rebuild_error
from pipecat_personaplex.server.auth import new_key
from pipecat_personaplex.server.config import ServerConfig
from tests.golden_data import CHECKPOINT
from tests.helpers.servers import RunningServer, ServedFakeEngine, eventually, failing


@pytest.fixture
def engine() -> ServedFakeEngine:
    return ServedFakeEngine(max_sessions=2)


@pytest.fixture
def server(engine: ServedFakeEngine) -> Iterator[RunningServer]:
    with RunningServer(engine) as running:
        yield running


def refusal(
    server: RunningServer, path: str = "/v1/session", **options: Any
) -> tuple[int, PersonaPlexError, Any]:
    """Connect and be refused before the upgrade; return status, error and headers."""
    with pytest.raises(InvalidStatus) as raised, server.connect(path, **options):
        pass
    response = raised.value.response
    message = parse_server(bytes(response.body).decode())
    assert isinstance(message, Error) and message.fatal
    return response.status_code, rebuild_error(message), response.headers


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert body.keys() == {"type", "code", "message", "fatal", "details"}
    return response.status_code, body["code"]


# Pages.


def test_pages_of_a_server_that_is_ready(server: RunningServer) -> None:
    health = server.get("/healthz")
    assert (health.status_code, health.json()) == (200, {"healthy": True})
    assert "server" not in health.headers
    ready = server.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})
    voices = server.get("/v1/voices")
    assert (voices.status_code, voices.json()) == (200, {"voices": ["NATF2", "NATM1"]})
    metrics = server.get("/metrics")
    assert metrics.status_code == 200
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(metrics.text)}
    assert {"personaplex_step_seconds", "personaplex_sessions", "personaplex_connections"} <= names


def test_every_error_is_json(server: RunningServer) -> None:
    assert error_of(server.get("/nowhere")) == (404, "not_found")
    assert error_of(server.get("/healthz/")) == (404, "not_found")
    assert error_of(server.get("/../../etc/passwd")) == (404, "not_found")
    refused = httpx.post(server.url + "/healthz", content=b"x" * 100_000)
    assert error_of(refused) == (405, "method_not_allowed")
    assert "GET" in refused.headers["allow"]
    for path in ("/v1/session", "/api/chat?voice_prompt=x"):
        assert error_of(server.get(path)) == (426, "upgrade_required")
    assert refusal(server, "/v1/sessions")[0] == 404
    assert refusal(server, "/")[0] == 404


def test_a_defect_is_logged_and_not_sent_to_the_client(
    server: RunningServer, engine: ServedFakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise ZeroDivisionError("secret")

    logged: list[str] = []
    sink = logger.add(logged.append, level="ERROR")
    monkeypatch.setattr(engine, "stats", fail)
    try:
        for path in ("/readyz", "/metrics"):
            response = server.get(path)
            assert error_of(response) == (500, "internal_server_error")
            assert "secret" not in response.text and "Traceback" not in response.text
        # The endpoint fails after the upgrade, when it builds hello.
        with server.connect() as ws, pytest.raises(ConnectionClosed) as closed:
            ws.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
    finally:
        logger.remove(sink)
    assert "an endpoint failed" in "".join(logged) and "ZeroDivisionError" in "".join(logged)
    monkeypatch.undo()
    eventually(lambda: server.state.admission.connections == 0)
    assert server.get("/readyz").status_code == 200


# Loading, full, failed.


def test_while_the_model_loads(engine: ServedFakeEngine) -> None:
    loaded = threading.Event()

    def load() -> ServedFakeEngine:
        assert loaded.wait(30)
        return engine

    with RunningServer(load, ready=False) as server:
        eventually(lambda: server.runner.loop is not None)
        assert server.get("/healthz").status_code == 200
        ready = server.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"ready": False, "reason": "loading"})
        assert int(ready.headers["retry-after"]) > 0
        assert error_of(server.get("/v1/voices")) == (503, "engine_stopped")
        assert "personaplex_healthy 0.0" in server.get("/metrics").text
        status, error, headers = refusal(server)
        assert (status, type(error)) == (503, EngineStopped)
        assert "loading" in str(error) and int(headers["Retry-After"]) > 0
        loaded.set()
        eventually(lambda: server.get("/readyz").status_code == 200)
        with server.connect() as ws:
            ws.recv(10)


def test_a_load_that_fails_ends_the_server() -> None:
    with pytest.raises(CheckpointError, match="cut off"):
        RunningServer(failing(CheckpointError("cut off"))).__enter__()


def test_a_stop_while_the_engine_loads() -> None:
    release = threading.Event()

    def load() -> Any:
        release.wait(30)
        return ServedFakeEngine()

    with RunningServer(load, ready=False) as server:
        eventually(lambda: server.runner.loop is not None)
        server.stop()
        assert server.wait_stopped()
        assert server.error is None
    release.set()


def test_a_full_server_is_not_ready(server: RunningServer, engine: ServedFakeEngine) -> None:
    sessions = [
        engine.open_session(Persona("NATF2"), on_frame=lambda frame: None) for _ in range(2)
    ]
    ready = server.get("/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (503, "full")
    # Connections are still accepted: to resume a session or to read hello.
    with server.connect() as ws:
        ws.recv(10)
    sessions[0].close()
    eventually(lambda: server.get("/readyz").status_code == 200)
    assert server.get("/healthz").status_code == 200


def test_a_failed_engine(server: RunningServer, engine: ServedFakeEngine) -> None:
    server.call(engine.break_down)
    health = server.get("/healthz")
    assert (health.status_code, health.json()["healthy"]) == (503, False)
    assert "restart" in health.json()["reason"]
    assert server.get("/readyz").json()["reason"] == "failed"
    status, error, _ = refusal(server)
    assert (status, type(error)) == (503, EngineFailed)


def test_with_the_engine_itself(loaded_engine: Engine) -> None:
    with RunningServer(loaded_engine) as server:
        assert server.get("/v1/voices").json() == {"voices": loaded_engine.voices}
        assert server.get("/readyz").status_code == 200
        assert "personaplex_max_sessions 4.0" in server.get("/metrics").text
    with pytest.raises(EngineStopped):
        loaded_engine.open_session(Persona("NATF2"), on_frame=print)


def test_a_server_loads_its_engine() -> None:
    config = EngineConfig(device="cpu", dtype="float32", max_sessions=1)
    with RunningServer(lambda: Engine.load(CHECKPOINT, config)) as server:
        assert server.get("/readyz").status_code == 200


# Admission.


def test_keys() -> None:
    key, line = new_key("bot")
    with RunningServer(ServedFakeEngine(), keys=[line]) as server:
        for options in ({}, {"additional_headers": {"Authorization": f"Bearer {key}x"}}):
            status, error, headers = refusal(server, **options)
            assert (status, type(error)) == (401, AccessDenied)
            assert headers["WWW-Authenticate"] == "Bearer"
        assert refusal(server, f"/v1/session?api_key={key}")[0] == 401
        assert refusal(server, "/nowhere")[0] == 401
        with server.connect(additional_headers={"Authorization": f"Bearer {key}"}) as ws:
            ws.recv(10)
        subprotocols: Any = ["personaplex.v1", f"bearer.{key}"]
        with server.connect(subprotocols=subprotocols) as ws:
            assert ws.subprotocol == "personaplex.v1"
        with server.connect(f"/api/chat?voice_prompt=NATF2.pt&text_prompt=&api_key={key}"):
            pass
        assert error_of(server.get("/v1/voices")) == (401, "access_denied")
        bearer = {"Authorization": f"Bearer {key}"}
        assert server.get("/v1/voices", headers=bearer).status_code == 200
        # The operator's pages need no key.
        for path in ("/healthz", "/readyz", "/metrics"):
            assert server.get(path).status_code == 200
        metrics = server.get("/metrics").text
        assert 'personaplex_refusals_total{reason="access_denied"} 5.0' in metrics
        for reason in ("origin_denied", "key_limit", "too_many_connections", "engine_draining"):
            assert f'personaplex_refusals_total{{reason="{reason}"}} 0.0' in metrics


def test_a_key_with_a_session_limit_cannot_take_all_connections() -> None:
    keys = [new_key("greedy", max_sessions=1), new_key("other")]
    greedy, other = ({"Authorization": f"Bearer {key}"} for key, _ in keys)
    with RunningServer(ServedFakeEngine(), keys=[line for _, line in keys]) as server:
        with ExitStack() as stay:
            for _ in range(10):
                stay.enter_context(server.connect(additional_headers=greedy)).recv(10)
            status, error, headers = refusal(server, additional_headers=greedy)
            assert (status, type(error)) == (503, LimitReached)
            assert "connections" in str(error) and int(headers["Retry-After"]) > 0
            stay.enter_context(server.connect(additional_headers=other)).recv(10)
        eventually(lambda: server.state.admission.connections == 0)
        with server.connect(additional_headers=greedy) as ws:
            ws.recv(10)


def test_tracebacks_in_the_log_have_no_values(tmp_path: Path) -> None:
    """The variables of a traceback may be a prompt or a key."""
    program = """
from loguru import logger
from pipecat_personaplex.logs import configure_logging

def open_session(prompt):
    raise ZeroDivisionError(len(prompt))

configure_logging("DEBUG")
try:
    open_session("my secret " + "prompt")  # in two parts, because the log quotes this line
except ZeroDivisionError as error:
    logger.opt(exception=error).error("an endpoint failed")
"""
    path = tmp_path / "defect.py"  # loguru prints source lines, with values, only for a file
    path.write_text(program)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert "an endpoint failed" in done.stderr and "ZeroDivisionError" in done.stderr
    assert "my secret prompt" not in done.stderr


def test_origins() -> None:
    config = ServerConfig(allow_origins=("https://example.com",))
    with RunningServer(ServedFakeEngine(), config) as server:
        for origin in ("https://example.com", server.url):
            with server.connect(origin=origin) as ws:
                ws.recv(10)
        status, error, _ = refusal(server, origin="https://evil.example")
        assert (status, type(error)) == (403, AccessDenied)
        assert "evil.example" in str(error)


def test_one_connection_too_many_is_refused_before_its_upgrade() -> None:
    with RunningServer(ServedFakeEngine(), ServerConfig(max_connections=2)) as server:
        with server.connect() as one, server.connect() as other:
            one.recv(10), other.recv(10)
            status, error, headers = refusal(server)
            assert (status, type(error)) == (503, LimitReached)
            assert int(headers["Retry-After"]) > 0
            assert server.get("/healthz").status_code == 200
        eventually(lambda: server.state.admission.connections == 0)
        with server.connect() as ws:
            ws.recv(10)
