"""Servers for tests: one in this process with any engine, and ``personaplex serve`` itself."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
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
from tests.helpers.forking import offline_environment, start

_WAIT_SECONDS = 30.0


class ServedFakeEngine(FakeEngine):
    """A ``FakeEngine`` with health and stats, as a server needs it; ``break_down`` fails it."""

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
    """A server on a free port of 127.0.0.1, on its own thread, while a ``with`` block runs.

    ``url`` is its http address and ``ws_url`` its address for WebSockets. ``state`` is its
    ``ServerState``; change it only on the server's loop, with ``call``. The engine is started and
    stopped with the server.

    Args:
        engine: A context manager, such as ``ServedFakeEngine()`` or an ``Engine``, or a function
            that loads one.
        config: The server's limits.
        keys: Keys that the server accepts; None if it needs none.
        address: For TLS; its port must be 0.
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
        admission = AdmissionController(config, None if keys is None else ApiKeys(keys))
        self.state = ServerState(config, "tiny", admission)
        load = engine if callable(engine) else lambda: engine
        self.runner = ServerRunner(self.state, address or Address(port=0), load)
        self.url = self.runner.url
        self.ws_url = self.url.replace("http", "ws", 1)
        self.error: BaseException | None = None
        self._wait_ready = ready
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-server", daemon=True)

    def _run(self) -> None:
        try:
            self.runner.run(lambda url: self._ready.set())
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
        """Stop as at the first SIGTERM; returns at once."""
        self.runner.stop()

    def stop_now(self) -> None:
        """Stop as at the second SIGTERM; returns when the server has stopped."""
        while self._thread.is_alive():
            self.runner.stop()
            self._thread.join(0.2)

    def wait_stopped(self, seconds: float = _WAIT_SECONDS) -> bool:
        """Return whether the server stops by itself in this time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def call(self, work: Callable[[], Any]) -> Any:
        """Call a function on the server's loop and return its result."""
        done = threading.Event()
        results: list[Any] = []

        def run() -> None:
            results.append(work())
            done.set()

        assert self.runner.loop is not None
        self.runner.loop.call_soon_threadsafe(run)
        assert done.wait(_WAIT_SECONDS)
        return results[0]

    def advance(self, seconds: float) -> None:
        """Move the clock of the server's loop forward; timers fire as if the time had passed."""

        def shift() -> None:
            loop: Any = self.runner.loop
            now = loop.time
            loop.time = lambda: now() + seconds

        self.call(shift)

    @property
    def connections(self) -> set[Any]:
        """uvicorn's protocol objects, one for each socket."""
        return self.runner.server.server_state.connections

    def tcp(self) -> socket.socket:
        """Open a TCP connection without sending anything."""
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), 30)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=_WAIT_SECONDS, **options)

    def connect(self, path: str = "/v1/session", **options: Any) -> Any:
        """Open a WebSocket; a context manager."""
        return connect(self.ws_url + path, proxy=None, compression=None, **options)


class ServeProcess:
    """``personaplex serve`` with the golden checkpoint on a free port, for a ``with`` block.

    ``stdout`` is what it has printed so far, ``log`` what it has logged. The process is killed at
    the end of the block if it still runs.

    Args:
        more: Further arguments, such as ``"--max-sessions", 2``.
        ready: Whether to wait until it accepts sessions.
        fresh: Whether it needs an interpreter of its own, because its imports, its start or its end
            are what is tested.
        env: Environment variables in addition to those of this process.
    """

    start_seconds = 2 * _WAIT_SECONDS

    def __init__(
        self,
        *more: str | int | float | Path,
        ready: bool = True,
        fresh: bool = False,
        env: dict[str, str] | None = None,
    ):
        self._arguments = [
            *("serve", "--model", str(CHECKPOINT), "--device", "cpu", "--dtype", "float32"),
            *(["--port", "0"] if "--port" not in more else []),
            *map(str, more),
        ]
        self._env = {**offline_environment(), "OMP_NUM_THREADS": "1", **(env or {})}
        self._fresh = fresh
        self._wait_ready = ready
        self._listening = threading.Event()
        self._ready = threading.Event()
        self._lines: list[str] = []
        self.url = self.stdout = ""

    def __enter__(self) -> ServeProcess:
        self.process = start(
            "pipecat_personaplex.cli",
            self._arguments,
            self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            fresh=self._fresh,
        )
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        waited = self._ready if self._wait_ready else self._listening
        if not waited.wait(self.start_seconds) or not self.url:
            self.__exit__()  # closes its pipes
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

    def counter(self, name: str) -> float:
        """A counter of ``/metrics``, such as ``frames``."""
        [value] = re.findall(rf"^personaplex_{name}_total (\S+)$", self.get("/metrics").text, re.M)
        return float(value)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.wait(_WAIT_SECONDS)

    def wait(self, seconds: float = _WAIT_SECONDS) -> int:
        """Wait until the process exits by itself; return its exit code."""
        return self.process.wait(seconds)


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and localhost; return its file and its key's file."""
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
    """Return client TLS settings that trust a self-signed certificate."""
    return ssl.create_default_context(cafile=str(certificate))


def eventually(condition: Callable[[], bool], seconds: float = _WAIT_SECONDS) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def failing(error: PersonaPlexError) -> Callable[[], Any]:
    """Return a load function that raises."""

    def load() -> Any:
        raise error

    return load
