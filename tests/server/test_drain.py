"""How a server stops: in this process, and as a process that receives signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from loguru import logger
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.auth import ApiKeys, new_key
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.runner import reload_keys_on_hangup
from pipecat_personaplex.server.state import ServerState
from tests.helpers.servers import RunningServer, ServedFakeEngine, ServeProcess, eventually

FRAME = bytes(3840)


@contextmanager
def client(url: str, **options: Any) -> Iterator[ClientConnection]:
    with connect(f"{url}/v1/session", proxy=None, compression=None, **options) as ws:
        assert receive(ws)["type"] == "hello"
        yield ws


def receive(ws: ClientConnection) -> dict[str, Any]:
    """The next JSON message."""
    while not isinstance(message := ws.recv(30), str):
        pass
    return dict(json.loads(message))


def send(ws: ClientConnection, kind: str, **message: Any) -> None:
    ws.send(json.dumps({"type": kind} | message))


def opened(ws: ClientConnection) -> str:
    send(ws, "open", voice="NATF2")
    answer = receive(ws)
    assert answer["type"] == "opened", answer
    assert receive(ws) == {"type": "ready"}
    return str(answer["session"])


def speak(ws: ClientConnection, sequence: int) -> None:
    """Send a frame and wait for the response."""
    ws.send(b"\x01" + sequence.to_bytes(4, "big") + FRAME)
    while not isinstance(ws.recv(30), bytes):
        pass


def ended(ws: ClientConnection) -> tuple[dict[str, Any], int]:
    """Wait for the close; return the last message and the close code."""
    last: dict[str, Any] = {}
    try:
        while True:
            last = receive(ws)
    except ConnectionClosed as closed:
        return last, 0 if closed.rcvd is None else closed.rcvd.code


def is_stopped(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=5)
    except httpx.TransportError:
        return True
    return False


def test_draining_waits_for_the_last_session() -> None:
    with RunningServer(ServedFakeEngine()) as server:
        with client(server.ws_url) as ws:
            opened(ws)
            speak(ws, 0)
            server.stop()
            draining = receive(ws)
            assert draining["type"] == "draining" and 0 < draining["seconds"] <= 30
            # The port still serves health checks, and refuses new sessions with an error.
            assert server.get("/healthz").status_code == 200
            assert server.get("/readyz").json() == {"ready": False, "reason": "draining"}
            assert "personaplex_draining 1.0" in server.get("/metrics").text
            with connect(f"{server.ws_url}/v1/session", proxy=None) as late:
                assert receive(late)["draining"] is True
                send(late, "open", voice="NATF2")
                error, code = ended(late)
                assert (error["code"], code) == ("engine_draining", 1001)
            for sequence in range(1, 4):
                speak(ws, sequence)
            send(ws, "close")
            assert ended(ws) == ({"type": "closed"}, 1000)
        assert server.wait_stopped()
        assert server.error is None
    assert is_stopped(server.url)


def test_a_session_may_be_resumed_while_draining() -> None:
    with RunningServer(ServedFakeEngine()) as server:
        with client(server.ws_url) as ws:
            secret = opened(ws)
            speak(ws, 0)
            ws.socket.shutdown(2)
        server.stop()
        with client(server.ws_url) as ws:
            send(ws, "resume", session=secret, next_frame=1)
            assert receive(ws)["type"] == "resumed"
            assert receive(ws)["type"] == "draining"
            speak(ws, 1)
            send(ws, "close")
            assert ended(ws)[1] == 1000
        assert server.wait_stopped()


def test_the_deadline_ends_sessions_with_an_error() -> None:
    engine = ServedFakeEngine()
    with RunningServer(engine, ServerConfig(drain_seconds=0.3)) as server:
        with client(server.ws_url) as ws:
            opened(ws)
            server.stop()
            error, code = ended(ws)
        assert (error["code"], error["fatal"], code) == ("engine_draining", True, 1001)
        assert server.wait_stopped()
    assert engine.open_sessions == []


def test_a_second_stop_does_not_wait() -> None:
    with RunningServer(ServedFakeEngine(), ServerConfig(drain_seconds=600)) as server:
        with client(server.ws_url) as ws:
            opened(ws)
            server.stop()
            assert receive(ws)["type"] == "draining"
            server.stop()
            assert ended(ws)[1] == 1012
        assert server.wait_stopped()
        assert isinstance(server.error, KeyboardInterrupt)


def test_two_stops_while_the_engine_loads() -> None:
    loaded = threading.Event()

    def load() -> ServedFakeEngine:
        loaded.wait(60)
        return ServedFakeEngine()

    with RunningServer(load, ready=False) as server:
        eventually(lambda: not is_stopped(server.url))
        server.stop()
        server.stop()
        assert server.wait_stopped()
        assert server.error is None
    loaded.set()


# The same with ``personaplex serve`` and signals.


def test_ctrl_c_twice_ends_the_process() -> None:
    with ServeProcess("--drain-seconds", 600) as server:
        with client(server.ws_url) as ws:
            opened(ws)
            server.send(signal.SIGHUP)  # without a key file it does nothing
            eventually(lambda: "there is no key file to read again" in server.log)
            server.send(signal.SIGINT)
            assert receive(ws)["type"] == "draining"
            server.send(signal.SIGINT)
            assert ended(ws)[1] == 1012
        assert server.wait() == 130
    assert server.log.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in server.log


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_signals_while_the_model_loads(signals: list[signal.Signals]) -> None:
    """The loading thread, inside torch, would abort the process when the interpreter exits."""
    with ServeProcess(ready=False, fresh=True) as server:
        assert server.get("/healthz").status_code == 200
        for number in signals:
            server.send(number)
        assert server.wait() == 0
    assert "Traceback" not in server.log and "terminate called" not in server.log


def test_a_hangup_reads_the_keys_again_and_sigterm_drains(tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = new_key("old"), new_key("new", 1)
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{old_line}\n")
    keys.chmod(0o600)

    def bearer(key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}

    def status(key: str) -> int:
        return server.get("/v1/voices", headers=bearer(key)).status_code

    with ServeProcess("--api-key-file", keys) as server:
        assert (status(old), status(new)) == (200, 401)
        with client(server.ws_url, additional_headers=bearer(old)) as ws:
            opened(ws)
            keys.write_text("nonsense\n")
            server.send(signal.SIGHUP)
            eventually(lambda: "the keys are unchanged" in server.log)
            assert status(old) == 200
            keys.write_text(f"{new_line}\n")
            server.send(signal.SIGHUP)
            eventually(lambda: status(new) == 200)
            assert status(old) == 401
            speak(ws, 0)
            server.terminate()
            assert receive(ws)["type"] == "draining"
            assert server.get("/readyz").json()["reason"] == "draining"
            with pytest.raises(InvalidStatus), client(server.ws_url):
                pass
            speak(ws, 1)
            send(ws, "close")
            assert ended(ws)[1] == 1000
        assert server.wait() == 0
    assert "session of old opened at /v1/session; 1 now" in server.log
    assert "session of old ended after" in server.log
    assert old not in server.log and new not in server.log and "Traceback" not in server.log


def test_a_hangup_during_a_logging_call(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{new_key('bot')[1]}\n")
    keys.chmod(0o600)
    config = ServerConfig()
    state = ServerState(config, "tiny", AdmissionController(config, ApiKeys([])))
    before = state.admission.keys
    lines: list[str] = []
    written = asyncio.Event()

    def write(line: str) -> None:
        if not lines:
            os.kill(os.getpid(), signal.SIGHUP)
        lines.append(line)
        if len(lines) == 2:
            written.set()

    async def main() -> None:
        reload_keys_on_hangup(state, keys)
        logger.info("opened")
        await written.wait()

    handler = signal.getsignal(signal.SIGHUP)
    sink = logger.add(write, format="{message}", catch=False)
    try:
        asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        logger.remove(sink)
        signal.signal(signal.SIGHUP, handler)
    assert lines == ["opened\n", f"read the keys of {keys} again\n"]
    assert state.admission.keys is not before


def test_a_stopped_server_leaves_no_thread() -> None:
    before = threading.active_count()
    with RunningServer(ServedFakeEngine()) as server:
        server.get("/healthz")
    eventually(lambda: threading.active_count() <= before)
