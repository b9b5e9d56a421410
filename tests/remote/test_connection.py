"""Errors of connections: one line that says what to do, without an API key in it."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from pipecat_personaplex.errors import ConfigError, EngineUnreachable
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.remote.address import ServerAddress
from pipecat_personaplex.remote.connection import as_unreachable
from pipecat_personaplex.remote.server import Server
from pipecat_personaplex.server.listen import tls_context
from tests.helpers.servers import self_signed
from tests.remote.fakes import FakeServer
from tests.remote.helpers import Caller, until


def refusal(url: str, key: str | None = None, start_seconds: float = 8) -> str:
    with pytest.raises(EngineUnreachable) as raised:
        RemoteEngine(url, api_key=key, start_seconds=start_seconds).start()
    return str(raised.value)


class TestKeys:
    @pytest.mark.parametrize(
        "key", ["top\nsecret", "top secret", "s\N{CAT FACE}cret", "se\x00cret"]
    )
    def test_an_invalid_key_is_refused_without_repeating_it(self, key: str) -> None:
        with pytest.raises(ConfigError, match="printable ASCII") as raised:
            RemoteEngine("ws://host", api_key=key)
        assert "cret" not in str(raised.value)

    def test_whitespace_around_a_key_is_removed(self) -> None:
        assert ServerAddress.parse("ws://host", " sesame\n", None).api_key == "sesame"
        assert ServerAddress.parse("ws://host", " ", None).api_key is None

    @pytest.mark.parametrize(
        "url",
        [
            "host?key=sesame",
            "ftp://host#sesame",
            "ws://?k=sesame",
            "sesame:x@host",
            "ws://u:se?same@host",
        ],
    )
    def test_errors_about_a_url_do_not_contain_a_key(self, url: str) -> None:
        with pytest.raises(ConfigError) as raised:
            RemoteEngine(url)
        assert "same" not in str(raised.value)

    def test_errors_about_a_header_do_not_contain_its_value(self) -> None:
        with FakeServer() as server:
            engine = RemoteEngine(server.url, start_seconds=8)
            engine._addresses = [ServerAddress(f"{server.url}/v1/session", False, "top\nsecret")]
            with pytest.raises(EngineUnreachable) as raised:
                engine.start()
        assert "secret" not in str(raised.value)


class TestMessages:
    def test_urls(self) -> None:
        with pytest.raises(ConfigError, match=r"did you mean ws://127\.0\.0\.1:8998\?"):
            RemoteEngine("127.0.0.1:8998")
        with pytest.raises(ConfigError, match=r"not 'ws://a\.\.b'"):
            RemoteEngine("ws://a..b")

    def test_statuses(self) -> None:
        with FakeServer(key="sesame") as server:
            assert "requires an API key (401); set PERSONAPLEX_API_KEY" in refusal(server.url)
            assert "does not accept this API key (401)" in refusal(server.url, "abracadabra")
            server.status = 404
            assert "check the path" in refusal(server.url, "sesame")

    def test_the_error_message_of_a_server_is_shown(self) -> None:
        with FakeServer() as server:
            server.status = 503
            server.body = json.dumps(
                dict(type="error", code="x", message="the model\n loads", fatal=True)
            )
            assert "the model loads (503)" in refusal(server.url, start_seconds=0.5)
            server.body = '{"type": "ready"}'
            assert "accepts no more connections (503)" in refusal(server.url, start_seconds=0.5)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "does not use TLS; use ws:// instead"),
            (ConnectionResetError(), "if the server does not use TLS, use ws:// instead"),
        ],
    )
    def test_a_server_without_tls(self, error: OSError, reason: str) -> None:
        if isinstance(error, ssl.SSLError):
            error.reason = "WRONG_VERSION_NUMBER"
        address = ServerAddress.parse("wss://host", None, None)
        assert reason in str(as_unreachable(address, error))

    def test_a_server_with_tls(self, tmp_path: Path) -> None:
        with FakeServer(tls=tls_context(*self_signed(tmp_path))) as server:
            assert "set SSL_CERT_FILE" in refusal(server.url)
            assert "if the server uses TLS, use wss://" in refusal(
                server.url.replace("wss:", "ws:")
            )


class TestRedirections:
    @pytest.mark.parametrize(
        ("location", "shown"),
        [
            ("https://u:p@host/v1/session?k=v", "to https://host/v1/session (301); .* as wss://"),
            ("ws://other:1/x", "to ws://other:1/x (301); .* as ws://"),
            ("https://[", "invalid address (301)"),
            ("", "invalid address (301)"),
        ],
    )
    def test_are_reported_and_not_followed(self, location: str, shown: str) -> None:
        with FakeServer() as server:
            server.status, server.location = 301, location
            message = refusal(server.url, "sesame")
            assert all(part in message for part in shown.split(".*"))
            assert "u:p" not in message

    def test_the_server_is_polled_again(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            server.status, server.location = 301, "https://host/v1/session"
            assert isinstance(Caller(engine).ended(), EngineUnreachable)
            server.status = None
            until(lambda: engine.healthy)


def test_an_unexpected_error_does_not_end_the_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipecat_personaplex.remote.server._POLL_SECONDS", 0.1)
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        poll = engine._servers[0].poll

        async def boom(self: Server) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr(type(engine._servers[0]), "poll", boom)
        until(lambda: "boom" in engine.stats().servers[0].reason)
        monkeypatch.setattr(type(engine._servers[0]), "poll", lambda self: poll())
        until(lambda: engine.healthy)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "ws_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        Caller(engine).ready()
