"""Ray Serve with two replicas of the tiny model, with the commands and the file of docker/ray."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pipecat_personaplex import Persona, RemoteEngine
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.remote.session import RemoteSession
from tests.golden_data import CHECKPOINT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray"),
]

SHIPPED = Path(__file__).parents[2] / "docker" / "ray" / "serve.yaml"
REPLICAS = 2
START_SECONDS = 120
ANSWER_SECONDS = 30
FRAME = bytes(1920 * 2)


@dataclass
class Cluster:
    """A Ray cluster of one node that serves.

    Attributes:
        port: Where its proxy listens.
        metrics_port: Port of its node's metrics.
        head: The process that started all others of the cluster.
    """

    port: int
    metrics_port: int
    folder: Path
    head: subprocess.Popen[bytes]

    def replicas(self) -> set[int]:
        """Process ids of the replicas."""
        return {
            process
            for process in descendants(self.head.pid)
            if command(process).startswith("ray::ServeReplica:personaplex:engine")
        }

    def session(self, seconds: float = ANSWER_SECONDS) -> Session:
        return Session(self.port, seconds)


class Session:
    """A client of ``/v1/session``, written from PROTOCOL.md.

    Args:
        port: Of the server.
        seconds: How long the upgrade may take.
    """

    def __init__(self, port: int, seconds: float):
        self._sent = 0
        with ExitStack() as stack:
            self._websocket: ClientConnection = stack.enter_context(
                connect(f"ws://127.0.0.1:{port}/v1/session", open_timeout=seconds, close_timeout=2)
            )
            self.hello = self._receive()
            self._send({"type": "open", "voice": self.hello["voices"][0]})
            opened = self._receive()
            assert opened["type"] == "opened", opened
            self.id = opened["id"]
            assert opened["resume_seconds"] == 0
            assert self._receive()["type"] == "ready"
            self._stack = stack.pop_all()

    def converse(self) -> None:
        """Send a frame and receive the response."""
        self._websocket.send(struct.pack(">BI", 1, self._sent) + FRAME)
        answer = self._websocket.recv(timeout=ANSWER_SECONDS)
        assert isinstance(answer, bytes), answer
        assert struct.unpack_from(">BI", answer) == (1, self._sent)
        self._sent += 1

    def alive(self) -> bool:
        try:
            self.converse()
        except ConnectionClosed:
            return False
        return True

    def close(self) -> None:
        """Close the session and wait for the server's confirmation."""
        with suppress(ConnectionClosed):
            self._send({"type": "close"})
            assert self._receive()["type"] == "closed"
        self._stack.close()

    def _send(self, message: dict[str, object]) -> None:
        self._websocket.send(json.dumps(message))

    def _receive(self) -> dict[str, Any]:
        message = self._websocket.recv(timeout=ANSWER_SECONDS)
        assert isinstance(message, str)
        received: dict[str, Any] = json.loads(message)
        return received


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Ray creates sockets in this folder; a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    gcs, proxy, *others = free_ports(6)
    config = yaml.safe_load(SHIPPED.read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": proxy}
    args = config["applications"][0]["args"]
    args |= {"model": str(CHECKPOINT), "min_replicas": REPLICAS, "max_replicas": REPLICAS}
    args |= {"max_waiting": 1, "gpus": 0, "cpus": 0.5, "drain_seconds": 5}
    args["engine"] = {"device": "cpu", "max_sessions": 1}
    written = folder / "serve.yaml"
    written.write_text(yaml.safe_dump(config))
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": (
            "pipecat_personaplex.server.ray_serve:proxy_middlewares"
        ),
    }
    log = folder / "log.txt"

    def start(*arguments: object) -> subprocess.Popen[bytes]:
        program, *rest = map(str, arguments)
        with log.open("ab") as output:
            return subprocess.Popen(
                [Path(sys.executable).parent / program, *rest],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    ports = zip(
        ("ray-client-server", "dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export"),
        others,
        strict=True,
    )
    head = start(
        *("ray", "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}"),
        *("--include-dashboard=false", "--num-cpus=2", "--num-gpus=0"),
        *("--object-store-memory=100000000", *(f"--{name}-port={port}" for name, port in ports)),
    )
    serve: subprocess.Popen[bytes] | None = None
    try:
        until(lambda: accepts(gcs), START_SECONDS, lambda: log.read_text()[-2000:])
        serve = start("serve", "run", "--address", f"127.0.0.1:{gcs}", written)
        served = Cluster(proxy, others[-1], folder, head)
        until(
            lambda: healthy(proxy) and len(served.replicas()) == REPLICAS,
            START_SECONDS,
            lambda: log.read_text()[-4000:],
        )
        yield served
    finally:
        everything = {process for root in (serve, head) if root for process in family(root)}
        stop(serve, signal.SIGINT)
        stop(head, signal.SIGTERM)
        for process in everything:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    until(
        lambda: (
            not any(
                Path(f"/proc/{process}/cmdline").exists() and command(process)
                for process in everything
            )
        ),
        ANSWER_SECONDS,
    )


def test_sessions_fill_every_replica_then_one_waits_and_the_next_is_refused(
    cluster: Cluster,
) -> None:
    first, second = cluster.session(), cluster.session()
    try:
        # Each replica has one slot: two sessions are on two replicas.
        for session in (first, second):
            assert session.hello["max_sessions"] == 0, (
                "a replica must not report its slots as all slots"
            )
            session.converse()
        with ThreadPoolExecutor(4) as pool:
            callers = [pool.submit(cluster.session)]
            # Ray counts waiting callers with a delay: a second one may be let through.
            while not (done := wait(callers, timeout=2, return_when=FIRST_COMPLETED).done):
                callers.append(pool.submit(cluster.session))
                assert len(callers) <= 4, "no caller was refused"
            refusals = [caller.exception() for caller in done]
            waiting = [caller for caller in callers if caller not in done]
            first.close()
            second.close()
            served = [caller.result(ANSWER_SECONDS) for caller in waiting]
        assert refusals and waiting
        for refused in refusals:
            assert isinstance(refused, InvalidStatus)
            assert refused.response.status_code == 503
        for session in served:
            session.converse()
            session.close()
    finally:
        first.close()
        second.close()


def test_a_remote_engine_fills_every_replica_too(cluster: Cluster) -> None:
    with RemoteEngine(f"ws://127.0.0.1:{cluster.port}") as engine:
        persona = Persona(voice=engine.voices[0])
        sessions: list[RemoteSession] = []

        def another() -> bool:
            # Slots of the last test may not be free yet, and status polls take one for a moment.
            with suppress(PersonaPlexError):
                session = engine.open_session(persona, on_frame=print)
                if session.wait_ready(ANSWER_SECONDS):
                    sessions.append(session)
            return len(sessions) == REPLICAS

        until(another, START_SECONDS)
        for session in sessions:
            session.close()
            session.wait_ended(ANSWER_SECONDS)


def test_every_replica_exports_metrics(cluster: Cluster) -> None:
    def replicas_with_metrics() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{cluster.metrics_port}/metrics") as answer:
            found = re.findall(
                r"^ray_personaplex_max_sessions\{.*\} 1", answer.read().decode(), re.M
            )
        return len(found)

    until(lambda: replicas_with_metrics() == REPLICAS, ANSWER_SECONDS)


def test_replicas_log_each_session_with_its_id(cluster: Cluster) -> None:
    session = cluster.session(START_SECONDS)
    session.close()

    def lines() -> str:
        logs = cluster.folder.glob("session_latest/logs/worker-*.err")
        return "".join(log.read_text() for log in logs)

    opened = re.compile(rf"INFO +{session.id} session .*opened")
    until(lambda: opened.search(lines()), ANSWER_SECONDS, lines)


def test_a_killed_replica_ends_its_own_session_and_comes_back(cluster: Cluster) -> None:
    sessions = [cluster.session() for _ in range(REPLICAS)]
    before = cluster.replicas()
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    left = [session for session in sessions if session.alive()]
    assert len(left) == 1, "one session was on the replica that was killed, one was not"
    # Its slot is free again when Ray has started another replica.
    new = cluster.session(START_SECONDS)
    new.converse()
    left[0].converse()
    after = cluster.replicas()
    assert victim not in after
    assert len(after) == REPLICAS
    for session in [*sessions, new]:
        session.close()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def until(
    condition: Callable[[], object], seconds: float, why: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds} s: {why()}"
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes] | None, number: signal.Signals) -> None:
    if process is None:
        return
    process.send_signal(number)
    try:
        process.wait(ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def family(root: subprocess.Popen[bytes]) -> set[int]:
    return {root.pid, *descendants(root.pid)}


def descendants(root: int) -> set[int]:
    """Return all processes that this one has started, directly or not."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The process name in parentheses may contain any character.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    found = {root}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def command(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
