"""The page of ``personaplex serve --page``, without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.app import create_app
from pipecat_personaplex.server.auth import ApiKeys, new_key
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.state import ServerState
from pipecat_personaplex.talk.served_page import page_routes
from tests.helpers.servers import ServedFakeEngine


def served(
    keys: ApiKeys | None = None, allow_origins: tuple[str, ...] = ()
) -> tuple[ServerState, TestClient]:
    config = ServerConfig(allow_origins=allow_origins)
    state = ServerState(config, "nano", AdmissionController(config, keys))
    return state, TestClient(create_app(state, page_routes(state, "nano")))


def test_the_page_and_what_it_needs_to_know() -> None:
    state, page = served()
    assert page.get("/api/info").json()["state"] == "loading"
    with ServedFakeEngine() as engine:
        state.loaded = engine
        info = page.get("/api/info").json()
        assert (info["server"], info["state"], info["key_required"]) == ("serve", "ready", False)
        assert info["voices"] == engine.voices and info["slots"] == engine.max_sessions
    for path in ("/", "/static/main.js"):
        response = page.get(path)
        assert response.status_code == 200
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert page.get("/healthz").status_code == 200  # the server's own pages stay


def test_a_server_with_keys_names_no_voices_without_one(tmp_path: Path) -> None:
    key, line = new_key("page")
    path = tmp_path / "keys.txt"
    path.write_text(f"{line}\n")
    state, page = served(ApiKeys.read(path))
    with ServedFakeEngine() as engine:
        state.loaded = engine
        info = page.get("/api/info").json()
        assert info["key_required"] and info["voices"] == []
        assert page.get("/v1/voices").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert page.get("/v1/voices", headers=headers).json() == {"voices": engine.voices}


PUBLIC = "https://gpu.example.com:8998"


@pytest.mark.parametrize(
    ("host", "origin", "allowed", "with_keys", "options"),
    [
        ("127.0.0.1:8998", "http://127.0.0.1:8998", (), False, []),
        ("gpu.example.com:8998", PUBLIC, (), True, []),
        ("gpu.example.com:8998", PUBLIC, (PUBLIC,), False, []),
        ("gpu.example.com:8998", PUBLIC, (), False, ["--api-key-file", f"--allow-origin {PUBLIC}"]),
        # Behind a proxy that replaces the host, keys change nothing.
        ("localhost:8998", PUBLIC, (), False, [f"--allow-origin {PUBLIC}"]),
        ("localhost:8998", PUBLIC, (), True, [f"--allow-origin {PUBLIC}"]),
    ],
)
def test_the_page_learns_whether_it_may_connect(
    host: str, origin: str, allowed: tuple[str, ...], with_keys: bool, options: list[str]
) -> None:
    keys = ApiKeys([new_key("page")[1]]) if with_keys else None
    state, page = served(keys, allowed)
    info = page.get("/api/info", headers={"host": host, "x-page-origin": origin}).json()
    if options:
        named = " or ".join(f"`{option}`" for option in options)
        assert info["refusal"] == f"The server refuses calls from {origin}. Start it with {named}."
    else:
        assert info["refusal"] == ""
    assert state.admission.refusals == {}  # a question is no refusal


def test_who_names_no_origin_is_no_page() -> None:
    _, page = served()
    assert page.get("/api/info", headers={"host": "gpu.example.com"}).json()["refusal"] == ""
    odd = {"host": "gpu.example.com", "x-page-origin": "x" * 5_000}
    assert len(page.get("/api/info", headers=odd).json()["refusal"]) < 400


def test_without_the_option_there_is_no_page() -> None:
    config = ServerConfig()
    page = TestClient(create_app(ServerState(config, "nano", AdmissionController(config))))
    assert page.get("/").status_code == 404
