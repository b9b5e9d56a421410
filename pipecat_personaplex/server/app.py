"""The server as an ASGI application: HTTP pages, WebSocket endpoints, and their admission."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from http import HTTPStatus

from loguru import logger
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from pipecat_personaplex.asgi.one_request import OneRequest
from pipecat_personaplex.errors import AccessDenied, EngineFailed, PersonaPlexError
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.protocol.session_messages import SESSION_PATH, Error, error_message
from pipecat_personaplex.server.auth import ApiClient, address_of
from pipecat_personaplex.server.metrics import CONTENT_TYPE
from pipecat_personaplex.server.moshi_endpoint import moshi_endpoint
from pipecat_personaplex.server.session_endpoint import session_endpoint
from pipecat_personaplex.server.state import ServerState
from pipecat_personaplex.server.websocket import FAILED

_RETRY_SECONDS = 5
_DEFECT_TEXT = "the server failed to answer; its log says why"


def create_app(
    state: ServerState, more_routes: Sequence[BaseRoute] = (), *, health: bool = True
) -> Starlette:
    """Build the application of a server.

    Args:
        state: The server; its engine may be loaded later.
        more_routes: Pages in addition to the server's own.
        health: Whether it serves ``/healthz``, ``/readyz`` and ``/metrics``.
    """
    pages = _Pages(state)
    routes = [
        Route("/v1/voices", pages.voices),
        Route(SESSION_PATH, _upgrade_required),
        Route(MOSHI_PATH, _upgrade_required),
        WebSocketRoute(SESSION_PATH, session_endpoint(state)),
        WebSocketRoute(MOSHI_PATH, moshi_endpoint(state)),
        *more_routes,
        WebSocketRoute("/{path:path}", _no_such_websocket),
    ]
    admission = Middleware(_AdmissionMiddleware, state=state)
    return _application([*routes, *(pages.health_routes() if health else ())], admission)


def create_health_app(state: ServerState) -> Starlette:
    """Build the application of a port for health checks and metrics alone."""
    return _application(_Pages(state).health_routes())


def _application(routes: Sequence[BaseRoute], *middleware: Middleware) -> Starlette:
    app = Starlette(
        routes=routes,
        middleware=[Middleware(OneRequest), *middleware],
        exception_handlers={HTTPException: _http_error, Exception: _defect},
    )
    app.router.redirect_slashes = False  # An unknown path is 404, not a redirect.
    return app


class _Pages:
    """The HTTP pages: health, readiness, metrics, voices."""

    def __init__(self, state: ServerState):
        self._state = state

    def health_routes(self) -> list[Route]:
        """The pages that report the server's state and need no key."""
        return [
            Route("/healthz", self.health),
            Route("/readyz", self.readiness),
            Route("/metrics", self.metrics),
        ]

    async def health(self, request: Request) -> Response:
        engine = self._state.loaded
        if engine is not None and not engine.healthy:
            reason = "the engine has failed; restart the server"
            return JSONResponse({"healthy": False, "reason": reason}, 503)
        return JSONResponse({"healthy": True})

    async def readiness(self, request: Request) -> Response:
        reason = self._not_ready()
        if reason is not None:
            headers = {"Retry-After": str(_RETRY_SECONDS)}
            return JSONResponse({"ready": False, "reason": reason}, 503, headers)
        return JSONResponse({"ready": True})

    def _not_ready(self) -> str | None:
        engine = self._state.loaded
        if self._state.admission.draining:
            return "draining"
        if engine is None:
            return "loading"
        stats = engine.stats()
        if not stats.healthy:
            return "failed"
        return "full" if stats.sessions >= stats.max_sessions else None

    async def metrics(self, request: Request) -> Response:
        return Response(self._state.metrics.render(), media_type=CONTENT_TYPE)

    async def voices(self, request: Request) -> Response:
        try:
            self._state.admission.identify(request)
            return JSONResponse({"voices": self._state.engine.voices})
        except PersonaPlexError as error:
            self._state.refusals.record(error, client=address_of(request))
            denied = isinstance(error, AccessDenied)
            status = HTTPStatus.UNAUTHORIZED if denied else HTTPStatus.SERVICE_UNAVAILABLE
            return _refusal(error, status)


class _AdmissionMiddleware:
    """Checks every WebSocket before its upgrade; a refusal is an HTTP response."""

    def __init__(self, app: ASGIApp, state: ServerState):
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        websocket = WebSocket(scope, receive, send)
        with ExitStack() as counted:
            refusal = self._admit(websocket, counted)
            if refusal is None:
                await self._serve(scope, receive, send)
            else:
                await websocket.send_denial_response(refusal)

    def _admit(self, websocket: WebSocket, counted: ExitStack) -> Response | None:
        """Check a WebSocket and count it while ``counted`` is open; return the refusal, if any."""
        admission = self._state.admission
        label = address_of(websocket)
        status = HTTPStatus.SERVICE_UNAVAILABLE
        try:
            counted.enter_context(admission.connection())
            status = HTTPStatus.FORBIDDEN
            admission.check_origin(websocket)
            status = HTTPStatus.UNAUTHORIZED
            client: ApiClient = admission.identify(websocket)
            label = client.label
            websocket.state.client = client
            status = HTTPStatus.SERVICE_UNAVAILABLE
            counted.enter_context(admission.connection_of(client))
            self._require_engine()
        except PersonaPlexError as error:
            self._state.refusals.record(error, client=label)
            return _refusal(error, status)
        return None

    def _require_engine(self) -> None:
        if not self._state.engine.healthy:
            raise EngineFailed("the engine has failed; try another server")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the endpoint; log an exception and close the connection with a proper code."""
        accepted = False

        async def watch_accept(message: Message) -> None:
            nonlocal accepted
            accepted = accepted or message["type"] == "websocket.accept"
            await send(message)

        try:
            await self._app(scope, receive, watch_accept)
        except OSError:  # ASGI servers raise it when the client has disconnected.
            pass
        except Exception as error:
            logger.opt(exception=error).error("an endpoint failed")
            with suppress(Exception):  # The connection may be closed already.
                if accepted:
                    await send({"type": "websocket.close", "code": FAILED})
                else:
                    await WebSocket(scope, receive, send).send_denial_response(_failure())


def _refusal(error: PersonaPlexError, status: HTTPStatus) -> Response:
    headers = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_RETRY_SECONDS)
    elif status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return _error(error_message(error, fatal=True), status, headers)


def _error(error: Error, status: int, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(error.model_dump(), status, headers)


def _plain_error(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    code = HTTPStatus(status).phrase.lower().replace(" ", "_")
    return _error(Error(code=code, message=message, fatal=True), status, headers)


def _failure() -> Response:
    return _plain_error(_DEFECT_TEXT, HTTPStatus.INTERNAL_SERVER_ERROR)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = None if error.headers is None else dict(error.headers)
    return _plain_error(error.detail, error.status_code, headers)


async def _defect(request: Request, error: Exception) -> Response:
    return _failure()


async def _upgrade_required(request: Request) -> Response:
    text = f"{request.scope['path']} is a WebSocket: connect with ws:// or wss://"
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return _plain_error(text, HTTPStatus.UPGRADE_REQUIRED, headers)


async def _no_such_websocket(websocket: WebSocket) -> None:
    text = f"there is no WebSocket here; try {SESSION_PATH}"
    await websocket.send_denial_response(_plain_error(text, HTTPStatus.NOT_FOUND))
