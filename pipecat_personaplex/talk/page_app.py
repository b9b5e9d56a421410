"""The web application of ``personaplex talk``: the page, its model, and its calls."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout, suppress
from functools import wraps
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipecat.transports.smallwebrtc.request_handler import (
    SmallWebRTCRequest,
    SmallWebRTCRequestHandler,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipecat_personaplex import __version__
from pipecat_personaplex.asgi.body_limit import BodyLimit
from pipecat_personaplex.asgi.one_request import OneRequest
from pipecat_personaplex.asgi.websocket_limit import WebSocketLimit
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import (
    BadMessage,
    ConfigError,
    EngineError,
    LimitReached,
    PersonaPlexError,
)
from pipecat_personaplex.talk.conversation import CallRequest
from pipecat_personaplex.talk.host import TalkHost
from pipecat_personaplex.talk.ice import for_browser
from pipecat_personaplex.talk.local_engine import MAX_VOICE_UPLOAD
from pipecat_personaplex.talk.offers import check_offer
from pipecat_personaplex.talk.requests import SameOrigin, SecurityHeaders
from pipecat_personaplex.talk.static_files import STATIC

_RETRY_SECONDS = 5
_OPEN_SECONDS = 10.0
_POLICY_VIOLATION, _TRY_AGAIN_LATER = 1008, 1013
_VOICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_VOICE_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".pt", ".safetensors")
_MAX_JSON = 256 << 10

Handler = Callable[[Request], Awaitable[Response]]


def create_app(
    host: TalkHost,
    hosts: frozenset[str] = frozenset(),
    origins: frozenset[str] = frozenset(),
) -> Starlette:
    """Build the application.

    Args:
        host: The model, which may be loaded later, and the calls.
        hosts: Names of this machine under which other machines may open the page.
        origins: Origins of the page behind a proxy.
    """
    pages = _Pages(host)
    routes: list[BaseRoute] = [
        Route("/", pages.index),
        Route("/api/info", pages.info),
        Route("/api/offer", _errors_as_json(pages.offer), methods=["POST"]),
        Route("/api/hangup", _errors_as_json(pages.hang_up), methods=["POST"]),
        Route("/api/prompt", _errors_as_json(pages.prompt), methods=["POST"]),
        Route("/api/voices", _errors_as_json(pages.add_voice), methods=["POST"]),
        Route("/api/voices/{name}.wav", _errors_as_json(pages.preview)),
        WebSocketRoute("/api/socket", pages.socket),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    if host.options.prebuilt:
        routes += _prebuilt_routes(pages)
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(OneRequest),
            Middleware(SecurityHeaders),
            Middleware(SameOrigin, hosts=hosts, origins=origins),
            Middleware(WebSocketLimit),
            Middleware(BodyLimit, max_bytes=_MAX_JSON, by_path={"/api/voices": MAX_VOICE_UPLOAD}),
        ],
    )


class _Pages:
    """The handlers of the application."""

    def __init__(self, host: TalkHost):
        self._host = host
        self._connections = SmallWebRTCRequestHandler(
            ice_servers=list(host.options.ice_servers) or None
        )

    @property
    def ice_servers(self) -> list[dict[str, str]]:
        """Servers that help browsers to connect, as browsers take them."""
        return [for_browser(server) for server in self._host.options.ice_servers]

    async def index(self, request: Request) -> Response:
        self._host.opened = True
        return FileResponse(STATIC / "index.html")

    async def info(self, request: Request) -> Response:
        """What the page needs to know before a call; it asks again while the model loads."""
        host = self._host
        engine = None if host.local is None else host.local.engine
        about = host.about
        sampling = SamplingParams()
        return JSONResponse(
            {
                "server": "talk",
                "version": __version__,
                "state": host.state,
                "failure": host.failure or ("" if host.state != "failed" else "the model failed"),
                "note": host.options.note,
                "model": about.name,
                "description": about.description,
                "roles": [vars(role) for role in about.roles],
                "voices": [] if engine is None else engine.voices,
                "voice": host.voice,
                "prompt": host.prompt,
                "greeting": host.options.greeting,
                "sampling": vars(sampling),
                "slots": 0 if engine is None else engine.max_sessions,
                "calls": host.calls,
                "transcribes": host.options.transcriber is not None,
                "ice_servers": self.ice_servers,
                "key_required": False,
            },
            headers={"Cache-Control": "no-store"},
        )

    async def offer(self, request: Request) -> Response:
        """Start a call: a WebRTC offer with the persona, answered by the bot's."""
        body = await _json_object(request)
        if body.get("pc_id"):
            return await self._renegotiate(body, str(body["pc_id"]))
        requested = self._call_request(body.get("request_data") or body.get("requestData") or {})
        await self._host.admit(requested)

        async def start(connection: Any) -> None:
            self._host.start_call(connection, requested)

        return JSONResponse(await self._answer(body, start))

    async def _renegotiate(self, body: dict[str, Any], call_id: str) -> Response:
        if not self._host.has_call(call_id):
            raise BadMessage("this call is over; start another")

        async def is_over(connection: Any) -> None:  # a new connection: the call has ended since
            raise BadMessage("this call is over; start another")

        answer = await self._answer(body, is_over)
        if answer["pc_id"] != call_id:  # the connection was made anew
            self._host.rename_call(call_id, answer["pc_id"])
            self._forget(call_id)
        return JSONResponse(answer)

    def _forget(self, pc_id: str) -> None:
        """Remove an id of which Pipecat's handler does not notice that its connection is closed."""
        self._connections._pcs_map.pop(pc_id, None)

    async def _answer(
        self, body: dict[str, Any], start: Callable[[Any], Awaitable[None]]
    ) -> dict[str, str]:
        sdp, kind = body.get("sdp"), body.get("type")
        if not isinstance(sdp, str) or kind != "offer":
            raise BadMessage("an offer needs sdp, and the type offer")
        check_offer(sdp)
        if "m=audio" not in sdp:
            raise BadMessage("the offer has no audio")
        offered = SmallWebRTCRequest(
            sdp=sdp, type=kind, pc_id=body.get("pc_id"), restart_pc=body.get("restart_pc")
        )
        refusals: list[PersonaPlexError] = []

        # The handler logs what this function raises, and answers the offer all the same.
        async def start_or_refuse(connection: Any) -> None:
            try:
                await start(connection)
            except PersonaPlexError as error:
                refusals.append(error)
                await connection.disconnect()

        try:
            answer = await self._connections.handle_web_request(offered, start_or_refuse)
        except Exception as error:  # aiortc raises many types for an offer that it cannot read
            raise BadMessage(f"the offer cannot be answered: {type(error).__name__}") from error
        assert answer is not None, "the handler raises without an answer"
        if refusals:
            self._forget(answer["pc_id"])
            raise refusals[0]
        return answer

    async def socket(self, websocket: WebSocket) -> None:
        """A call over a WebSocket: first the persona, then audio and RTVI messages."""
        await websocket.accept()
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                data = json.loads(await websocket.receive_text())
            requested = self._call_request(data)
            await self._host.admit(requested)
            await self._host.talk_over(websocket, requested)
        except PersonaPlexError as error:
            with suppress(RuntimeError, WebSocketDisconnect):  # the page may have gone
                await websocket.send_json(_content(error))
                await websocket.close(_TRY_AGAIN_LATER)
        except (KeyError, ValueError, RecursionError, TimeoutError):
            with suppress(RuntimeError, WebSocketDisconnect):
                await websocket.close(_POLICY_VIOLATION)
        except WebSocketDisconnect:
            pass

    def _call_request(self, data: Any) -> CallRequest:
        if not isinstance(data, dict):
            raise BadMessage("request_data must be an object")
        sampling = data.get("sampling") or {}
        known = vars(SamplingParams())
        if not isinstance(sampling, dict) or not sampling.keys() <= known.keys():
            raise ConfigError(f"sampling may have {', '.join(known)}")
        greeting = data.get("greeting", self._host.options.greeting)
        if not isinstance(greeting, str):
            raise BadMessage("greeting must be a text")
        persona = Persona(
            data.get("voice") or self._host.voice, data.get("prompt", self._host.prompt)
        )
        return CallRequest(persona, SamplingParams(**sampling), greeting)

    async def hang_up(self, request: Request) -> Response:
        """End a call. Browsers send this as a beacon when the page is closed."""
        body = await _json_object(request)
        await self._host.hang_up(str(body.get("pc_id")))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def prompt(self, request: Request) -> Response:
        """How much of the window a persona takes."""
        body = await _json_object(request)
        persona = Persona(body.get("voice") or self._host.voice, body.get("prompt", ""))
        local = self._host.require()
        size = await asyncio.to_thread(local.prompt_size, persona)
        return JSONResponse(vars(size))

    async def preview(self, request: Request) -> Response:
        """A sentence in a voice."""
        wav = await self._host.preview(request.path_params["name"])
        return Response(wav, media_type="audio/wav")

    async def add_voice(self, request: Request) -> Response:
        """Add a voice from a file that was dropped on the page."""
        local = self._host.require()
        file = Path(request.query_params.get("file", ""))
        name, suffix = request.query_params.get("name", ""), file.suffix.lower()
        if not _VOICE_NAME.fullmatch(name):
            raise ConfigError("a voice's name has 1 to 32 letters, digits, - or _")
        if suffix not in _VOICE_SUFFIXES:
            raise ConfigError(
                f"a voice is a recording or a voice file: {', '.join(_VOICE_SUFFIXES)}, "
                f"not {suffix or 'a file without a suffix'}"
            )
        await asyncio.to_thread(local.add_voice, name, await request.body(), suffix)
        return JSONResponse({"name": name, "voices": local.engine.voices})


def _prebuilt_routes(pages: _Pages) -> list[BaseRoute]:
    """Pipecat's own page, which starts a session before it sends its offer."""
    if find_spec("pipecat_ai_prebuilt") is None:
        raise ConfigError("--prebuilt needs Pipecat's page: pip install pipecat-ai-prebuilt")
    with redirect_stdout(io.StringIO()):  # it prints where it looks for its files
        from pipecat_ai_prebuilt.frontend import PipecatPrebuiltUI

    async def start(request: Request) -> Response:
        return JSONResponse({"sessionId": "talk", "iceConfig": {"iceServers": pages.ice_servers}})

    async def candidates(request: Request) -> Response:
        # Candidates are in the answer already: aiortc gathers all of them before it answers.
        return JSONResponse({"status": "success"})

    async def to_page(request: Request) -> Response:
        return RedirectResponse("/client/")

    offer = _errors_as_json(pages.offer)
    return [
        Route("/start", start, methods=["POST"]),
        Route("/api/offer", candidates, methods=["PATCH"]),
        Route("/sessions/{session}/api/offer", offer, methods=["POST"]),
        Route("/sessions/{session}/api/offer", candidates, methods=["PATCH"]),
        Route("/client", to_page),
        Mount("/client", PipecatPrebuiltUI),
    ]


def _errors_as_json(handler: Handler) -> Handler:
    """Answer an error of this package with its one line."""

    @wraps(handler)
    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except PersonaPlexError as error:
            status, headers = HTTPStatus.BAD_REQUEST, {}
            if isinstance(error, EngineError):
                status = HTTPStatus.SERVICE_UNAVAILABLE
                headers = {"Retry-After": str(_RETRY_SECONDS)}
            elif isinstance(error, LimitReached):
                status = HTTPStatus.CONFLICT
            return JSONResponse(_content(error), status, headers)

    return answered


def _content(error: PersonaPlexError) -> dict[str, str]:
    return {"code": type(error).__name__, "detail": str(error)}


async def _json_object(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except HTTPException:
        raise
    except (ValueError, RecursionError):
        raise BadMessage("the request is not JSON") from None
    if not isinstance(body, dict):
        raise BadMessage("the request must be a JSON object")
    return body
