"""Runs a server: it listens while the model loads, and drains before it stops."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET6, socket
from types import FrameType
from typing import Any

import uvicorn
from loguru import logger
from starlette.routing import BaseRoute

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.app import create_app, create_health_app
from pipecat_personaplex.server.auth import ApiKeys
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.guarded_server import GuardedServer
from pipecat_personaplex.server.listen import (
    OTHER_CONNECTIONS,
    connection_limits,
    health_limits,
    open_socket,
    tls_context,
    uvicorn_config,
)
from pipecat_personaplex.server.state import ServedEngine, ServerState

Load = Callable[[], AbstractContextManager[ServedEngine]]

# File descriptors in addition to WebSockets: other connections, files, the event loop.
_OTHER_FILES = OTHER_CONNECTIONS + 512


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: A name or an address of this machine.
        port: 0 for any free port.
        certfile: A certificate, for TLS.
        keyfile: Its private key, unless it is in the same file.
        health_port: Port of ``/healthz``, ``/readyz`` and ``/metrics`` at the same host, without
            TLS; 0 for any free port. None serves them at ``port``.

    Example::

        Address("0.0.0.0", 8998, health_port=8999)
    """

    host: str = "127.0.0.1"
    port: int = 8998
    certfile: Path | None = None
    keyfile: Path | None = None
    health_port: int | None = None


class ServerRunner:
    """Runs a server until ``stop`` is called.

    The constructor opens the listening socket.

    Args:
        state: The server; ``run`` loads its engine.
        address: Where it listens.
        load: Loads the engine; called on a separate thread. ``run`` enters and leaves the context
            manager that it returns.
        more_routes: Pages in addition to the server's own.

    Attributes:
        url: URL of the server with its actual port.
        health_url: URL of health checks and metrics.
        server: The uvicorn server.
        limits: The limits of its connections.
        loop: The event loop; None before ``run``.

    Raises:
        ConfigError: The address or the certificate cannot be used.

    Example::

        state = ServerState(config, "personaplex-7b-v1", AdmissionController(config))
        runner = ServerRunner(state, Address(), lambda: Engine.load("nvidia/personaplex-7b-v1"))
        runner.run(announce=print)
    """

    def __init__(
        self,
        state: ServerState,
        address: Address,
        load: Load,
        more_routes: Sequence[BaseRoute] = (),
    ):
        tls = tls_context(address.certfile, address.keyfile)
        self._state = state
        self._load = load
        self.loop: asyncio.AbstractEventLoop | None = None
        self.limits = state.metrics.connection_limits = connection_limits(state.config)
        listening = open_socket(address.host, address.port)
        self.url = self.health_url = _url(address.host, listening, secure=tls is not None)
        app = create_app(state, more_routes, health=address.health_port is None)
        config = uvicorn_config(app, state.config, self.limits, tls)
        self.server = _Server(config, self.limits.guard(listening), state.config, self.stop)
        self._servers = [self.server]
        if address.health_port is not None:
            listening = open_socket(address.host, address.health_port)
            self.health_url = _url(address.host, listening, secure=False)
            limits = health_limits()
            config = uvicorn_config(create_health_app(state), state.config, limits)
            self._servers.append(_Server(config, limits.guard(listening), state.config))
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def run(self, announce: Callable[[str], object]) -> bool:
        """Load the engine and serve; returns when the server has stopped.

        Args:
            announce: Called with the server's URL as soon as it accepts sessions.

        Returns:
            False if ``stop`` was called while the engine was loading. The loading thread still
            runs then, and the process must exit without waiting for it (``os._exit``).

        Raises:
            PersonaPlexError: The engine cannot be loaded.
            KeyboardInterrupt: ``stop`` was called a second time, and all sessions were ended.
        """
        with ExitStack() as stack:
            done = asyncio.run(self._run(stack, announce))
        if done and self._stop_now.is_set():
            raise KeyboardInterrupt
        return done

    def stop(self) -> None:
        """Drain and stop; the second call stops at once. May be called on any thread."""
        if self.loop is not None:
            with suppress(RuntimeError):  # The loop is closed: the server has stopped.
                self.loop.call_soon_threadsafe(self._request_stop)

    def _request_stop(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    async def _run(self, stack: ExitStack, announce: Callable[[str], object]) -> bool:
        self.loop = asyncio.get_running_loop()
        serving = asyncio.gather(*(server.serve() for server in self._servers))
        stopped = asyncio.create_task(self._stop.wait())
        stopped_now = asyncio.create_task(self._stop_now.wait())
        logger.info("listening at {}; loading the model", self.url)
        if self.health_url != self.url:
            logger.info("health checks and metrics at {}", self.health_url)
        try:
            loading = _in_thread(lambda: stack.enter_context(self._load()))
            await _first(loading, stopped, serving)
            if not loading.done():
                return False
            self._state.loaded = loading.result()
            announce(self.url)
            await _first(stopped, serving)
            drained = asyncio.create_task(self._state.admission.drain())
            await _first(drained, stopped_now, serving)
        finally:
            for server in self._servers:
                server.force_exit = stopped_now.done()
                server.should_exit = True
            await serving
        return True


class _Server(GuardedServer):
    """A server with our signal handler."""

    def __init__(
        self,
        config: uvicorn.Config,
        listening: socket,
        limits: ServerConfig,
        on_signal: Callable[[], object] | None = None,
    ):
        super().__init__(config, listening, handshake_seconds=limits.hello_seconds)
        self._on_signal = on_signal

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # One server of the process receives the signals, and stops the others.
        with nullcontext() if self._on_signal is None else super().capture_signals():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        assert self._on_signal is not None
        self._on_signal()


def reload_keys_on_hangup(state: ServerState, path: Path | None) -> None:
    """Read the key file again on SIGHUP; if it is invalid, the old keys stay in use.

    Sessions whose key was removed continue. Must be called on the main thread.

    Args:
        state: The server.
        path: The key file. None: SIGHUP reads nothing, and does not end the process either.
    """

    def reload() -> None:
        if path is None:
            logger.info("SIGHUP: there is no key file to read again")
            return
        try:
            state.admission.keys = ApiKeys.read(path)
            logger.info("read the keys of {} again", path)
        except ConfigError as error:
            logger.error("the keys are unchanged: {}", error)

    def hung_up(*_: object) -> None:
        # A signal may interrupt any code, also a logging call that holds the log's lock. Reload
        # later, on the event loop.
        with suppress(RuntimeError):  # No loop runs: the server has not started, or has stopped.
            asyncio.get_running_loop().call_soon_threadsafe(reload)

    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, hung_up)


def allow_files(connections: int) -> None:
    """Raise the limit of open files so that the process can have this many connections."""
    if sys.platform == "win32":
        return
    import resource

    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        if limit < wanted:
            logger.warning(
                "the process may open only {} files, too few for {} connections; raise ulimit -n",
                *(limit, connections),
            )


def _in_thread(work: Callable[[], ServedEngine]) -> asyncio.Future[ServedEngine]:
    # Not an executor: the interpreter waits for executors at exit, and loading takes minutes.
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ServedEngine] = loop.create_future()

    def finish(engine: ServedEngine | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        elif engine is not None:
            future.set_result(engine)

    def run() -> None:
        engine, failure = None, None
        try:
            engine = work()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # The loop is closed: the server has stopped.
            loop.call_soon_threadsafe(finish, engine, failure)

    threading.Thread(target=run, name="personaplex-load", daemon=True).start()
    return future


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _url(name: str, listening: socket, *, secure: bool) -> str:
    host = f"[{name}]" if listening.family == AF_INET6 else name
    return f"{'https' if secure else 'http'}://{host}:{listening.getsockname()[1]}"
