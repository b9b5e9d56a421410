"""The page for ``personaplex serve --page``: its calls use ``/v1/session``."""

from __future__ import annotations

from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from pipecat_personaplex import __version__
from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.server.state import ServerState
from pipecat_personaplex.talk.about import describe_model
from pipecat_personaplex.talk.requests import SecurityHeaders
from pipecat_personaplex.talk.static_files import STATIC


def page_routes(state: ServerState, model: str) -> list[BaseRoute]:
    """Routes of the page.

    They give away nothing that a key protects. If the server requires a key, the page asks for it
    and reads the voices with it.

    Args:
        state: The server that the page talks to.
        model: The model's name, as given to the server.
    """
    about = describe_model(model)

    async def index(request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def info(request: Request) -> Response:
        engine = state.loaded
        keys = state.admission.keys is not None
        voices = [] if engine is None or keys else engine.voices
        return JSONResponse(
            {
                "server": "serve",
                "version": __version__,
                "state": _state_name(state),
                "failure": "the engine has failed; restart the server",
                "note": "",
                "model": about.name,
                "description": about.description,
                "roles": [vars(role) for role in about.roles],
                "voices": voices,
                "voice": next(iter(voices), ""),
                "prompt": about.roles[0].prompt,
                "greeting": "",
                "sampling": vars(SamplingParams()),
                "slots": 0 if engine is None else engine.max_sessions,
                "calls": 0,
                "transcribes": False,
                "ice_servers": [],
                "key_required": keys,
                "refusal": _refusal(state, request),
            },
            headers={"Cache-Control": "no-store"},
        )

    routes: list[BaseRoute] = [
        Route("/", index),
        Route("/api/info", info),
        Mount("/static", StaticFiles(directory=Path(STATIC))),
    ]
    for route in routes:
        route.app = SecurityHeaders(route.app)  # type: ignore[attr-defined]
    return routes


def _refusal(state: ServerState, request: Request) -> str:
    """Why calls of the page are refused, and what to do; empty if they are not.

    Browsers send no ``Origin`` with this request, so the page gives it in a header of its own.
    """
    origin = request.headers.get("x-page-origin")
    if origin is None:
        return ""
    headers = Headers({"host": request.headers.get("host", ""), "origin": origin})
    page = HTTPConnection({"type": "http", "headers": headers.raw})
    options = [f"`{option}`" for option in state.admission.options_for(page)]
    if not options:
        return ""
    return f"The server refuses calls from {origin[:100]}. Start it with {' or '.join(options)}."


def _state_name(state: ServerState) -> str:
    if state.loaded is None:
        return "loading"
    return "ready" if state.loaded.healthy else "failed"
