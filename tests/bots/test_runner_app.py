"""Pipecat's runner with the routes of one transport, and the guards in front of them."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pipecat.runner import run as runner

from bots import runner_app
from bots.runner_app import Protection, StartedSessions
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.auth import new_key
from tests.helpers.telephone import CREDENTIALS, PUBLIC

OPTIONS = argparse.Namespace(
    host="localhost",
    port=7860,
    proxy=PUBLIC,
    dialin=False,
    direct=False,
    ice_servers=[],
    esp32=False,
    whatsapp=False,
    uploads_folder=None,
    downloads_folder=None,
    ws_auth="none",
    allowed_origins=[],
    api_key_file=None,
    allow_unsigned=False,
)


def options(transport: str, **changed: object) -> argparse.Namespace:
    return argparse.Namespace(**(vars(OPTIONS) | {"transport": transport} | changed))


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., httpx.AsyncClient]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)

    def build(transport: str, **changed: object) -> httpx.AsyncClient:
        args = options(transport, **changed)
        monkeypatch.setattr(runner, "app", FastAPI())
        protection = Protection.of(args, lambda: False)
        runner_app._add_routes(args)
        runner_app._add_middleware(args, protection)
        asgi = httpx.ASGITransport(app=runner.app)
        return httpx.AsyncClient(transport=asgi, base_url="http://localhost:7860")

    return build


def test_pipecats_runner_has_what_the_bots_use() -> None:
    assert all(hasattr(runner, name) for name in runner_app.RUNNER_USES)


EXISTING = {
    "webrtc": {"GET /status", "POST /start", "POST /api/offer", "GET /client/"},
    "daily": {"GET /status", "POST /start", "GET /daily", "GET /client/"},
    "twilio": {"GET /status", "POST /"},
}
ALL = (
    *("GET /status", "POST /start", "POST /api/offer", "GET /client/", "GET /daily", "POST /"),
    *("POST /daily-dialin-webhook", "POST /files", "POST /whatsapp", "GET /whatsapp"),
)


@pytest.mark.parametrize("transport", [*EXISTING])
def test_only_the_routes_of_the_transport_exist(
    serve: Callable[..., httpx.AsyncClient], transport: str
) -> None:
    serve(transport)
    methods = {
        f"{method} {route.path}"
        for route in runner.app.routes
        for method in getattr(route, "methods", None) or {"GET"}
    }
    methods = {"GET /client/" if known == "GET /client" else known for known in methods}
    assert methods & {*ALL} == EXISTING[transport]
    sockets = [r.path for r in runner.app.routes if type(r).__name__ == "APIWebSocketRoute"]
    assert sockets == (["/ws", "/ws/{token}"] if transport == "twilio" else [])


@pytest.mark.parametrize("transport", [*EXISTING])
async def test_the_runner_does_not_describe_its_routes(
    serve: Callable[..., httpx.AsyncClient], transport: str
) -> None:
    async with serve(transport, allow_unsigned=True) as http:
        for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
            assert (await http.get(path)).status_code == 404, path
        assert (await http.get("/status")).status_code == 200


async def test_a_page_of_another_site_starts_no_call_in_a_room(
    serve: Callable[..., httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture or a link is requested without an ``Origin`` header."""
    monkeypatch.delenv("DAILY_API_KEY", raising=False)

    async def status(site: str | None, path: str = "/daily", **changed: object) -> int:
        headers = {} if site is None else {"Sec-Fetch-Site": site}
        async with serve("daily", **changed) as http:
            return (await http.get(path, headers=headers)).status_code

    assert await status("cross-site") == 403
    for site in (None, "none", "same-origin"):  # programs, an address that is typed, the own page
        assert await status(site) == 502, "a room would be created if there were a key"
    assert await status("cross-site", allowed_origins=["*"]) == 502
    assert await status("cross-site", "/client/") == 200, "a link to the bot's page"


async def test_pages_of_other_sites_get_no_answer(serve: Callable[..., httpx.AsyncClient]) -> None:
    async with serve("webrtc") as http:
        for origin in ("https://evil.example", "null"):
            response = await http.post("/start", json={}, headers={"Origin": origin})
            assert response.status_code == 403
            assert "access-control-allow-origin" not in response.headers
        own = await http.post("/start", json={}, headers={"Origin": "http://localhost:7860"})
        assert own.status_code == 200
    friend = {"Origin": "https://friend.example"}
    async with serve("webrtc", allowed_origins=["https://friend.example"]) as http:
        response = await http.post("/start", json={}, headers=friend)
        assert response.headers["access-control-allow-origin"] == friend["Origin"]
        assert "access-control-allow-credentials" not in response.headers
        preflight = await http.options(
            "/start", headers=friend | {"Access-Control-Request-Method": "POST"}
        )
        assert preflight.status_code == 200


async def test_with_a_key_file_the_page_needs_a_key(
    serve: Callable[..., httpx.AsyncClient], tmp_path: Path
) -> None:
    key, line = new_key("page")
    (tmp_path / "keys.txt").write_text(f"{line}\n")
    basic = base64.b64encode(f"me:{key}".encode()).decode()
    async with serve("webrtc", api_key_file=str(tmp_path / "keys.txt")) as http:
        for path in ("/client/", "/status", "/"):
            response = await http.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic")
        for path in ("/start", "/api/offer"):
            assert (await http.post(path, json={})).status_code == 401
        wrong = ("Bearer x", "Basic x", f"Basic {basic[:-4]}", "Basic", f"Digest {key}", "Bearer ü")
        for value in wrong:
            headers = {"Authorization": value.encode("latin-1")}
            assert (await http.post("/start", json={}, headers=headers)).status_code == 401
        for value in (f"Bearer {key}", f"basic {basic}"):
            headers = {"Authorization": value}
            assert (await http.get("/client/", headers=headers)).status_code == 200
            started = await http.post("/start", json={}, headers=headers)
            assert started.status_code == 200
        # The id of the session is the client's right to it.
        path = f"/sessions/{started.json()['sessionId']}/anything"
        assert (await http.get(path)).status_code == 200
        assert (await http.get("/sessions/unknown/anything")).status_code == 404


async def test_large_bodies_are_refused_before_they_are_parsed(
    serve: Callable[..., httpx.AsyncClient],
) -> None:
    offer = {"sdp": "a=candidate:1\r\n" * 100_000, "type": "offer"}
    async with serve("webrtc") as http:
        for path in ("/api/offer", "/start", "/sessions/x/api/offer"):
            assert (await http.post(path, json=offer)).status_code == 413


@pytest.mark.parametrize(
    ("transport", "changed", "message"),
    [
        ("webrtc", {"uploads_folder": "/tmp"}, "--uploads-folder"),
        ("webrtc", {"whatsapp": True}, "--whatsapp"),
        ("webrtc", {"allowed_origins": ["example.com"]}, "an allowed origin is"),
        ("webrtc", {"api_key_file": "/nowhere/keys.txt"}, "cannot be read"),
        ("twilio", {"api_key_file": "/nowhere/keys.txt"}, "is for the page"),
        ("twilio", {"ws_auth": "token"}, "--ws-auth"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    transport: str, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Protection.of(options(transport, **changed), lambda: False)


class TestStartedSessions:
    def test_unused_sessions_expire_and_store_nothing(self) -> None:
        now = 0.0
        sessions = StartedSessions(lambda: now)
        sessions["a"] = {"secret": "+4930123456"}
        sessions["b"] = {}
        assert sessions.get("b") == {} == sessions["a"]
        now = 121.0
        assert sessions.get("a") is None, "expired"
        assert sessions.get("b") == {}, "used by a call, which may renegotiate"
        sessions.pop("b", None)
        sessions.pop("b", None)
        assert not sessions

    def test_they_are_bounded(self) -> None:
        sessions = StartedSessions(lambda: 0.0)
        for number in range(5_000):
            sessions[str(number)] = {}
            sessions.get(str(number))
        assert len(sessions) <= 512
