"""A server as a process: it answers while the model loads, and empties before it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET6, socket
from types import FrameType
from typing import Any

import uvicorn
from loguru import logger

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.app import create_app
from pipecat_personaplex.server.auth import ApiKeys
from pipecat_personaplex.server.listen import (
    BACKLOG,
    OTHER_CONNECTIONS,
    open_socket,
    tls_context,
    uvicorn_config,
)
from pipecat_personaplex.server.state import ServedEngine, ServerState

Load = Callable[[], AbstractContextManager[ServedEngine]]

# Beside WebSockets: files, the event loop's own, those that have yet to finish with TLS.
_OTHER_FILES = OTHER_CONNECTIONS + 512
_TLS_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: A name or an address of this machine.
        port: 0 for any that is free.
        certfile: A certificate, for TLS.
        keyfile: Its private key, unless it is in the same file.
    """

    host: str = "127.0.0.1"
    port: int = 8998
    certfile: Path | None = None
    keyfile: Path | None = None


class ServerRunner:
    """Runs a server until it is asked to stop.

    Args:
        state: The server, whose engine is loaded by ``run``.
        address: Where it listens; from now on.
        load: Loads the engine, on a thread of its own; ``run`` enters and leaves the context.

    Attributes:
        url: Of the server, with the port that it has.
        server: uvicorn's part.
        loop: Where everything runs, while it does.

    Raises:
        ConfigError: The address or the certificate cannot be used.
    """

    def __init__(self, state: ServerState, address: Address, load: Load):
        tls = tls_context(address.certfile, address.keyfile)
        self._state = state
        self._load = load
        config = uvicorn_config(create_app(state), state.config, tls)
        self.server = _Server(config, self.stop, state.config.hello_seconds)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._socket = open_socket(address.host, address.port)
        self.url = _url(address, self._socket, secure=tls is not None)
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

    def run(self, announce: Callable[[str], object]) -> bool:
        """Serve; returns when the server has stopped.

        Args:
            announce: Called with the server's URL as soon as it takes sessions.

        Returns:
            False if it was stopped, once or twice, while the engine was loading: the thread still
            does, and may not be met by the interpreter's end.

        Raises:
            PersonaPlexError: The engine cannot be loaded.
            KeyboardInterrupt: It was told to stop a second time, and has ended its sessions.
        """
        with ExitStack() as stack:
            done = asyncio.run(self._run(stack, announce))
        if done and self._stop_now.is_set():
            raise KeyboardInterrupt
        return done

    def stop(self) -> None:
        """Drain and end; a second time, end at once. May be called on any thread."""
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has ended
                self.loop.call_soon_threadsafe(self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    async def _run(self, stack: ExitStack, announce: Callable[[str], object]) -> bool:
        self.loop = asyncio.get_running_loop()
        serving = asyncio.create_task(self.server.serve(sockets=[self._socket]))
        stopped = asyncio.create_task(self._stop.wait())
        stopped_now = asyncio.create_task(self._stop_now.wait())
        logger.info("listening at {}; the model loads", self.url)
        try:
            loading = _in_thread(lambda: stack.enter_context(self._load()))
            await _first(loading, stopped, serving)
            if not loading.done():
                return False
            self._state.loaded = loading.result()
            announce(self.url)
            await _first(stopped, serving)
            logger.info("stopping; sessions now: {}", self._state.door.sessions)
            await _first(asyncio.create_task(self._state.door.drain()), stopped_now, serving)
        finally:
            self.server.force_exit = stopped_now.done()
            self.server.should_exit = True
            await serving
        return True


SERVER_USES = ("config", "lifespan", "server_state", "servers", "should_exit", "started")
"""What ``_Server`` needs of uvicorn's class, whose ``startup`` it replaces."""


class _Server(uvicorn.Server):
    """uvicorn, whose signals and queue are ours, and whose clients have to finish with TLS."""

    def __init__(
        self, config: uvicorn.Config, on_signal: Callable[[], object], hello_seconds: float
    ):
        super().__init__(config)
        self._on_signal = on_signal
        self._hello_seconds = hello_seconds

    async def startup(self, sockets: list[socket] | None = None) -> None:
        config = self.config
        secure = config.ssl is not None

        def protocol() -> asyncio.Protocol:
            made: Callable[..., asyncio.Protocol] = config.http_protocol_class
            return made(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        loop = asyncio.get_running_loop()
        self.servers = []
        for listening in sockets or ():
            server = await loop.create_server(
                protocol,
                sock=listening,
                ssl=config.ssl,
                backlog=config.backlog,
                ssl_handshake_timeout=self._hello_seconds if secure else None,
                ssl_shutdown_timeout=_TLS_CLOSE_SECONDS if secure else None,
            )
            self.servers.append(server)
            # asyncio has made the queue as short as what it accepts at once.
            listening.listen(BACKLOG)
        self.started = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal()


def reload_keys_on_hangup(state: ServerState, path: Path) -> None:
    """Have SIGHUP read the key file again; one that cannot be read changes nothing.

    Sessions of keys that are gone go on; to be called on the main thread.
    """

    def reload() -> None:
        try:
            state.door.keys = ApiKeys.read(path)
            logger.info("read the keys of {} again", path)
        except ConfigError as error:
            logger.error("the keys stay as they were: {}", error)

    def hung_up(*_: object) -> None:
        # In the midst of anything, a line of the log included, whose lock is not free then.
        with suppress(RuntimeError):  # no loop runs: too early or too late for other keys
            asyncio.get_running_loop().call_soon_threadsafe(reload)

    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, hung_up)


def allow_files(connections: int) -> None:
    """Let the process have as many files open as it may have connections."""
    if sys.platform == "win32":
        return
    import resource

    wanted = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            logger.warning("only {} files may be open, for {} connections", most, connections)


def _in_thread(work: Callable[[], ServedEngine]) -> asyncio.Future[ServedEngine]:
    # Not an executor: those are waited for at exit, and a checkpoint takes minutes.
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
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(finish, engine, failure)

    threading.Thread(target=run, name="personaplex-load", daemon=True).start()
    return future


async def _first(*those: asyncio.Future[Any]) -> None:
    await asyncio.wait(those, return_when=asyncio.FIRST_COMPLETED)


def _url(address: Address, listening: socket, *, secure: bool) -> str:
    host = f"[{address.host}]" if listening.family == AF_INET6 else address.host
    return f"{'https' if secure else 'http'}://{host}:{listening.getsockname()[1]}"
