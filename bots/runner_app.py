"""Limits what strangers can do with Pipecat's development runner.

The runner registers the routes of all transports, answers pages of any origin, keeps the body of
each ``/start`` request, and accepts WebSocket messages of 16 MB, compressed and at any rate.
``configure_runner`` replaces the two places in which it does so: the function that configures the
application, and the call of uvicorn. What strangers may send is then bounded by the middleware in
``pipecat_personaplex.asgi``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from socket import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from loguru import logger
from pipecat.runner import run as runner
from starlette.middleware.cors import CORSMiddleware

from bots.busy import RefuseWhenFull
from bots.offer_limit import OfferLimit
from bots.page_key import KeyGuard
from bots.start_rate import StartRate
from bots.twilio_signature import TwilioOnly
from pipecat_personaplex.asgi.body_limit import BodyLimit
from pipecat_personaplex.asgi.one_request import OneRequest
from pipecat_personaplex.asgi.origins import OriginGuard
from pipecat_personaplex.asgi.websocket_limit import MAX_MESSAGE_BYTES, WebSocketLimit
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.auth import ApiKeys
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.connection_limits import ConnectionLimits
from pipecat_personaplex.server.guarded_server import GuardedServer
from pipecat_personaplex.server.uvicorn_protocols import WEBSOCKET, http_protocol

RUNNER_USES = (
    *("_configure_server_app", "_setup_daily_routes", "_setup_frontend_routes"),
    *("_setup_telephony_routes", "_setup_unified_start_route", "_setup_webrtc_routes"),
    *("app", "main", "uvicorn"),
)
"""Names of Pipecat's runner that the bots use or replace; a test checks that they exist."""

# A request must arrive, and its response be sent and read, in this time. Daily takes seconds to
# create a room.
_REQUEST_SECONDS = 30.0
_MAX_CONNECTIONS = 1024
_PING_SECONDS = 20.0
_UNUSED_SECONDS = 120.0
_MAX_SESSIONS = 512


@dataclass(frozen=True)
class Protection:
    """What the operator has chosen, with its files read.

    Attributes:
        origins: Origins of web pages that may connect, in addition to the bot's own.
        keys: Keys of which clients of the page need one; None for no keys.
        token: Twilio's auth token, with which requests are verified; None for no verification.
        full: Returns whether all slots are in use.
    """

    origins: tuple[str, ...]
    keys: ApiKeys | None
    token: str | None
    full: Callable[[], bool]

    @classmethod
    def of(cls, args: argparse.Namespace, full: Callable[[], bool]) -> Protection:
        """Read the options and the key file.

        Raises:
            ConfigError: An origin or the key file is not valid, or an option has no effect here.
        """
        for name in ("uploads_folder", "whatsapp", "esp32"):
            if getattr(args, name, None):
                raise ConfigError(f"the bots do not support --{name.replace('_', '-')}")
        if args.ws_auth != "none":
            raise ConfigError("the bots need no --ws-auth: they verify Twilio's signature")
        origins = ServerConfig(allow_origins=tuple(args.allowed_origins)).allow_origins
        token = None
        if args.transport == "twilio":
            if args.api_key_file:
                raise ConfigError("--api-key-file is for the page; Twilio signs its requests")
            token = None if args.allow_unsigned else os.environ.get("TWILIO_AUTH_TOKEN")
            if token is None:
                logger.warning(
                    "--allow-unsigned: requests are not verified, and anybody can start calls and "
                    "end those of your account; use it for tests only"
                )
        keys = ApiKeys.read(args.api_key_file) if args.api_key_file else None
        return cls(origins, keys, token, full)


def configure_runner(
    protection: Protection, listening: socket, on_start: Callable[[], object]
) -> None:
    """Make the runner serve only the chosen transport, within bounds, on a socket that is open.

    Args:
        protection: What the operator has chosen.
        listening: The socket.
        on_start: Called in the event loop once uvicorn has installed its signal handlers.
    """

    def configure(args: argparse.Namespace) -> None:
        _add_routes(args)
        _add_middleware(args, protection)

    _replace("_configure_server_app", configure)
    _replace("uvicorn", _Uvicorn(listening, on_start))


def _replace(name: str, value: object) -> None:
    setattr(runner, name, value)


def _add_routes(args: argparse.Namespace) -> None:
    app: Any = runner.app
    _remove_documentation(app)
    match args.transport:
        case "twilio":
            runner._setup_telephony_routes(app, args, set())

            @app.get("/status")  # type: ignore[untyped-decorator]
            async def status() -> dict[str, object]:
                return {"status": "ready", "transports": ["twilio"]}

            return
        case "webrtc":
            sessions: dict[str, Any] = StartedSessions()
            runner._setup_frontend_routes(app)
            runner._setup_webrtc_routes(app, args, sessions)
        case _:
            sessions = StartedSessions()
            runner._setup_frontend_routes(app)
            runner._setup_daily_routes(app, args)
    runner._setup_unified_start_route(app, args, sessions)


def _remove_documentation(app: FastAPI) -> None:
    """Remove FastAPI's own pages about the routes."""
    pages = {app.openapi_url, app.docs_url, app.swagger_ui_oauth2_redirect_url, app.redoc_url}
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) not in pages
    ]


def _add_middleware(args: argparse.Namespace, protection: Protection) -> None:
    """Add the middleware; the first is the innermost."""
    app = runner.app
    app.add_middleware(RefuseWhenFull, full=protection.full)
    if args.transport == "webrtc":
        app.add_middleware(OfferLimit)
    if protection.token is None:
        app.add_middleware(StartRate)
    else:  # its signature is a better limit than its address, which many calls share
        app.add_middleware(TwilioOnly, token=protection.token, host=args.proxy)
    if protection.keys is not None:
        app.add_middleware(KeyGuard, keys=protection.keys)
    if protection.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(protection.origins),
            allow_methods=["GET", "POST", "PATCH"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(
        OriginGuard,
        allowed=protection.origins,
        keys_required=protection.keys is not None,
        acting=("/daily",),
    )
    app.add_middleware(WebSocketLimit)
    app.add_middleware(BodyLimit)
    app.add_middleware(OneRequest)


class StartedSessions(dict[str, Any]):
    """The sessions that ``/start`` has created, for the runner; without what clients sent.

    A session that no call has used for two minutes expires, and the oldest one once there are too
    many: a client may start sessions and never come back.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        super().__init__()
        self._clock = clock
        self._unused_since: dict[str, float] = {}

    def __setitem__(self, session_id: str, body: object) -> None:
        now = self._clock()
        for other, since in list(self._unused_since.items()):  # the oldest first
            if now - since >= _UNUSED_SECONDS:
                self.pop(other, None)
        while len(self) >= _MAX_SESSIONS:
            self.pop(next(iter(self)), None)
        super().__setitem__(session_id, {})  # the bots use no body
        self._unused_since[session_id] = now

    def get(self, session_id: str, default: Any = None) -> Any:
        """Return the session of a request; it counts as used from now on."""
        self._expire(session_id)
        self._unused_since.pop(session_id, None)
        return super().get(session_id, default)

    def pop(self, session_id: str, *default: Any) -> Any:
        """Remove a session that has ended."""
        self._unused_since.pop(session_id, None)
        return super().pop(session_id, *default)

    def _expire(self, session_id: str) -> None:
        since = self._unused_since.get(session_id)
        if since is not None and self._clock() - since >= _UNUSED_SECONDS:
            self.pop(session_id, None)


class _Uvicorn:
    """The module ``uvicorn`` for the runner, whose ``run`` serves within bounds."""

    def __init__(self, listening: socket, on_start: Callable[[], object]):
        self._listening = listening
        self._on_start = on_start

    def __getattr__(self, name: str) -> Any:
        return getattr(uvicorn, name)

    def run(self, app: Any, *, host: str, port: int) -> None:
        """Serve on the socket that is open; returns after SIGINT or SIGTERM."""
        limits = ConnectionLimits(0, burst=0, max_connections=_MAX_CONNECTIONS)
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="asyncio",  # uvloop accepts connections without the limits
            http=http_protocol(_REQUEST_SECONDS, limits),
            ws=WEBSOCKET,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,  # a small message could expand to a large one
            ws_ping_interval=_PING_SECONDS,
            ws_ping_timeout=_PING_SECONDS,
            server_header=False,
        )
        with suppress(KeyboardInterrupt):  # uvicorn has shut down and raises the signal again
            _Server(config, limits.guard(self._listening), self._on_start).run()


class _Server(GuardedServer):
    """Logs its address, as uvicorn does unless it gets an open socket."""

    def __init__(self, config: uvicorn.Config, listening: socket, on_start: Callable[[], object]):
        super().__init__(config, listening)
        self._on_start = on_start

    async def startup(self, sockets: list[socket] | None = None) -> None:
        self._on_start()
        await super().startup(sockets)
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        logger.info("Uvicorn running on http://{}:{}", host, self.config.port)
