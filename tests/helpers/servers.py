"""Servers: one in this process around any engine, and ``personaplex serve`` itself."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect

from pipecat_personaplex.engine.stats import STEP_BOUNDS_MS
from pipecat_personaplex.errors import EngineFailed, PersonaPlexError
from pipecat_personaplex.interface import EngineStats
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.auth import ApiKeys, KeyLine
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.runner import Address, ServerRunner
from pipecat_personaplex.server.state import ServedEngine, ServerState
from tests.golden_data import CHECKPOINT
from tests.helpers.engines import FakeEngine

_WAIT_SECONDS = 30.0


class ServedFakeEngine(FakeEngine):
    """A ``FakeEngine`` with what a server asks besides; ``break_down`` makes it unhealthy."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.healthy = True
        self.refused = 0

    def break_down(self) -> None:
        self.healthy = False
        self.fail(EngineFailed("the engine failed and every session has ended: RuntimeError: x"))

    def open_session(self, *args: Any, **kwargs: Any) -> Any:
        self.refused += len(self.open_sessions) >= self.max_sessions
        return super().open_session(*args, **kwargs)

    def stats(self) -> EngineStats:
        open_sessions = self.open_sessions
        frames = sum(session.stats().frames for session in self.sessions)
        return EngineStats(
            healthy=self.healthy,
            sessions=len(open_sessions),
            queued_frames=sum(session.stats().queued_frames for session in open_sessions),
            max_sessions=self.max_sessions,
            steps=frames,
            frames=frames,
            late_frames=0,
            refused=self.refused,
            step_p50_ms=self.step_ms,
            step_p99_ms=self.step_ms,
            step_seconds_total=frames * self.step_ms / 1e3,
            step_histogram=(frames, *[0] * len(STEP_BOUNDS_MS)),
            prefix_hits=0,
            prefix_misses=0,
            prefix_bytes=0,
        )


class RunningServer:
    """A server on a free port of 127.0.0.1, on a thread, for the length of a ``with``.

    ``url`` is its http address, ``ws_url`` the same for WebSockets, ``state`` what it knows: to be
    changed on its loop alone, by ``call``. The engine is started and stopped with the server.

    Args:
        engine: A context manager, as ``ServedFakeEngine()`` and ``Engine`` are; a function that
            returns one takes the place of loading.
        config: The server's limits.
        keys: Whom it lets in; None for anybody.
        address: For TLS; the port is a free one.
        ready: Whether to wait until the engine is loaded.
    """

    def __init__(
        self,
        engine: AbstractContextManager[ServedEngine] | Callable[[], Any],
        config: ServerConfig | None = None,
        *,
        keys: list[KeyLine] | None = None,
        address: Address | None = None,
        ready: bool = True,
    ):
        config = config or ServerConfig()
        door = AdmissionController(config, None if keys is None else ApiKeys(keys))
        self.state = ServerState(config, "tiny", door)
        load = engine if callable(engine) else lambda: engine
        self.host = ServerRunner(self.state, address or Address(port=0), load)
        self.url = self.host.url
        self.ws_url = self.url.replace("http", "ws", 1)
        self.error: BaseException | None = None
        self._wait_ready = ready
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-server", daemon=True)

    def _run(self) -> None:
        try:
            self.host.run(lambda url: self._ready.set())
        except BaseException as error:
            self.error = error
        finally:
            self._ready.set()

    def __enter__(self) -> RunningServer:
        self._thread.start()
        if self._wait_ready:
            assert self._ready.wait(_WAIT_SECONDS)
            if self.error is not None:
                raise self.error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_now()

    def stop(self) -> None:
        """As the first SIGTERM; returns at once."""
        self.host.stop()

    def stop_now(self) -> None:
        """As the second; returns when the server is gone."""
        while self._thread.is_alive():
            self.host.stop()
            self._thread.join(0.2)

    def wait_stopped(self, seconds: float = _WAIT_SECONDS) -> bool:
        """Whether the server ends by itself within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def call(self, work: Callable[[], Any]) -> Any:
        """Do something on the server's loop, and return what that returns."""
        done = threading.Event()
        results: list[Any] = []

        def run() -> None:
            results.append(work())
            done.set()

        assert self.host.loop is not None
        self.host.loop.call_soon_threadsafe(run)
        assert done.wait(_WAIT_SECONDS)
        return results[0]

    @property
    def connections(self) -> set[Any]:
        """uvicorn's protocols, one a socket."""
        return self.host.server.server_state.connections

    def tcp(self) -> socket.socket:
        """A connection that has said nothing yet."""
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), 30)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=_WAIT_SECONDS, **options)

    def connect(self, path: str = "/v1/session", **options: Any) -> Any:
        """A WebSocket, for a ``with``."""
        return connect(self.ws_url + path, proxy=None, compression=None, **options)


class ServeProcess:
    """``personaplex serve``, the golden checkpoint on a free port, for the length of a ``with``.

    ``stdout`` is the line it printed, ``log`` what it has logged since; ``process.pid`` gets
    signals. Leaving the ``with`` kills what still runs.

    Args:
        more: Further arguments, as ``"--max-sessions", 2``.
        ready: Whether to wait until it takes sessions.
        env: Variables to set besides those of this process.
    """

    def __init__(
        self,
        *more: str | int | float | Path,
        ready: bool = True,
        env: dict[str, str] | None = None,
    ):
        self._arguments = [
            *(sys.executable, "-m", "pipecat_personaplex.cli", "serve"),
            *("--model", str(CHECKPOINT), "--device", "cpu", "--dtype", "float32"),
            *(["--port", "0"] if "--port" not in more else []),
            *map(str, more),
        ]
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self._wait_ready = ready
        self._listening = threading.Event()
        self._ready = threading.Event()
        self._lines: list[str] = []
        self.url = self.stdout = ""

    def __enter__(self) -> ServeProcess:
        self.process = subprocess.Popen(
            self._arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
        )
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        waited = self._ready if self._wait_ready else self._listening
        if not waited.wait(2 * _WAIT_SECONDS) or not self.url:
            self.kill()
            raise AssertionError(f"the server did not start: {self.log}")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdout is not None and self.process.stderr is not None
        for reader in self._readers:
            reader.join(_WAIT_SECONDS)
        self.process.stdout.close()
        self.process.stderr.close()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stdout += line
            self._found(line)
            self._ready.set()
        self._ready.set()

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.append(line)
            self._found(line)
        self._listening.set()

    def _found(self, line: str) -> None:
        if not self.url and (match := re.search(r"https?://\S+?:[0-9]+", line)):
            self.url = match[0]
            self._listening.set()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=_WAIT_SECONDS, **options)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it; returns when it is gone."""
        self.process.kill()
        self.process.wait(_WAIT_SECONDS)

    def wait(self, seconds: float = _WAIT_SECONDS) -> int:
        """The exit code, of a server that ends by itself."""
        return self.process.wait(seconds)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and localhost, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


def trusting(certificate: Path) -> ssl.SSLContext:
    """What a client needs to trust a self-signed certificate."""
    return ssl.create_default_context(cafile=str(certificate))


def eventually(condition: Callable[[], bool], seconds: float = _WAIT_SECONDS) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def failing(error: PersonaPlexError) -> Callable[[], Any]:
    """A load that fails."""

    def load() -> Any:
        raise error

    return load
