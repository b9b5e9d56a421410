"""Serves the page until it is interrupted: listens, loads the model, announces the address."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from loguru import logger

from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.process import frozen_objects
from pipecat_personaplex.server.connection_limits import ConnectionLimits
from pipecat_personaplex.server.guarded_server import GuardedServer
from pipecat_personaplex.server.uvicorn_protocols import WEBSOCKET, http_protocol
from pipecat_personaplex.service.webrtc_clock import use_monotonic_time
from pipecat_personaplex.talk.host import TalkHost
from pipecat_personaplex.talk.local_engine import LocalEngine
from pipecat_personaplex.talk.page_app import create_app
from pipecat_personaplex.talk.socket import MAX_MESSAGE_BYTES
from pipecat_personaplex.talk.webrtc import offer_loopback

# An open page asks once a second whether the model is loaded.
_FAILURE_SECONDS = 2.5
# A request must arrive, and its response be sent and read, in this time. The first preview of a
# voice and the check of a recording take seconds.
_REQUEST_SECONDS = 60.0
_MAX_CONNECTIONS = 256


class TalkServer:
    """Runs the page of one model.

    Args:
        host: What is served.
        listening: A listening socket.
        load: Loads the model; called on a thread of its own.
        tls: TLS settings; None for plain HTTP.
        hosts: Names of this machine under which other machines may open the page.
        origins: Origins of the page behind a proxy.

    Example::

        server = TalkServer(host, open_socket("127.0.0.1", 7860), lambda: LocalEngine("nano", c))
        server.run(ready=lambda: print("talk to it"))
    """

    def __init__(
        self,
        host: TalkHost,
        listening: socket.socket,
        load: Callable[[], LocalEngine],
        *,
        tls: ssl.SSLContext | None = None,
        hosts: frozenset[str] = frozenset(),
        origins: frozenset[str] = frozenset(),
    ):
        self._host = host
        self._load = load
        limits = ConnectionLimits(0, burst=0, max_connections=_MAX_CONNECTIONS)
        self._server = _Server(
            uvicorn.Config(
                create_app(host, hosts, origins),
                loop="asyncio",
                http=http_protocol(_REQUEST_SECONDS, limits),
                ws=WEBSOCKET,
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,  # audio does not compress
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=3,
                ssl_context_factory=None if tls is None else lambda *_: tls,
            ),
            limits.guard(listening),
        )

    def run(self, ready: Callable[[], object]) -> bool:
        """Serve until SIGINT or SIGTERM.

        Args:
            ready: Called once the model is loaded.

        Returns:
            False if the model was still being loaded when the server stopped. The loading thread
            runs on then, and the process must exit without waiting for it (``os._exit``).

        Raises:
            PersonaPlexError: The model cannot be loaded. A page that is open shows why.
        """
        offer_loopback()
        use_monotonic_time()
        return asyncio.run(self._run(ready))

    async def _run(self, ready: Callable[[], object]) -> bool:
        serving = asyncio.create_task(self._server.serve())
        stopping = asyncio.create_task(self._server.stopping.wait())
        loading = _in_thread(self._load)
        await asyncio.wait((serving, stopping, loading), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            await self._stop(serving)
            return False
        try:
            self._host.local = loading.result()
        except PersonaPlexError as error:
            self._host.failure = str(error)
            if self._host.opened:
                await asyncio.sleep(_FAILURE_SECONDS)
            await self._stop(serving)
            raise
        with self._host.local.engine, frozen_objects():
            ready()
            try:
                await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self._host.close()
                await self._stop(serving)
        return True

    async def _stop(self, serving: asyncio.Task[None]) -> None:
        self._server.should_exit = True
        await serving


class _Server(GuardedServer):
    """uvicorn's server; a signal ends the calls first, which uvicorn would wait for."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket):
        super().__init__(config, listening)
        self.stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.stopping.is_set() or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        logger.info("stopping")
        self.stopping.set()


def _in_thread(load: Callable[[], LocalEngine]) -> asyncio.Future[LocalEngine]:
    # Not an executor: asyncio waits for executors at the end, and loading takes minutes.
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LocalEngine] = loop.create_future()

    def finish(local: LocalEngine | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        elif local is not None:
            future.set_result(local)

    def run() -> None:
        local, failure = None, None
        try:
            local = load()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            loop.call_soon_threadsafe(finish, local, failure)

    threading.Thread(target=run, name="personaplex-load", daemon=True).start()
    return future
