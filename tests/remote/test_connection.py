"""Why there is no connection: a line to act on, without anybody's key."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import pytest

from pipecat_personaplex.errors import ConfigError, EngineUnreachable
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.connection import unreachable
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
    def test_what_is_no_key_is_not_repeated(self, key: str) -> None:
        with pytest.raises(ConfigError, match="characters that no key has") as raised:
            RemoteEngine("ws://host", api_key=key)
        assert "cret" not in str(raised.value)

    def test_blanks_around_a_key_are_none_of_it(self) -> None:
        assert Address.parse("ws://host", " sesame\n", None).api_key == "sesame"
        assert Address.parse("ws://host", " ", None).api_key is None

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
    def test_keys_in_a_url_are_not_repeated(self, url: str) -> None:
        with pytest.raises(ConfigError) as raised:
            RemoteEngine(url)
        assert "same" not in str(raised.value)

    def test_a_header_s_text_is_not_repeated(self) -> None:
        with FakeServer() as server:
            engine = RemoteEngine(server.url, start_seconds=8)
            engine._addresses = [Address(f"{server.url}/v1/session", False, "top\nsecret")]
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
            assert "wants a key (401); set PERSONAPLEX_API_KEY" in refusal(server.url)
            assert "does not know this key (401)" in refusal(server.url, "abracadabra")
            server.status = 404
            assert "is the path right?" in refusal(server.url, "sesame")

    def test_a_server_s_own_words(self) -> None:
        with FakeServer() as server:
            server.status = 503
            server.body = json.dumps(
                dict(type="error", code="x", message="the model\n loads", fatal=True)
            )
            assert "the model loads (503)" in refusal(server.url, start_seconds=0.5)
            server.body = '{"type": "ready"}'
            assert "takes no more connections (503)" in refusal(server.url, start_seconds=0.5)

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]"), "speaks no TLS; use ws:// instead"),
            (ConnectionResetError(), "if it has no TLS, use ws:// instead"),
        ],
    )
    def test_no_tls_there(self, error: OSError, reason: str) -> None:
        if isinstance(error, ssl.SSLError):
            error.reason = "WRONG_VERSION_NUMBER"
        address = Address.parse("wss://host", None, None)
        assert reason in str(unreachable(address, error))

    def test_tls_there(self, tmp_path: Path) -> None:
        with FakeServer(tls=tls_context(*self_signed(tmp_path))) as server:
            assert "set SSL_CERT_FILE" in refusal(server.url)
            assert "if it has TLS, use wss://" in refusal(server.url.replace("wss:", "ws:"))


class TestRedirections:
    @pytest.mark.parametrize(
        ("location", "shown"),
        [
            ("https://u:p@host/v1/session?k=v", "to https://host/v1/session (301); .* as wss://"),
            ("ws://other:1/x", "to ws://other:1/x (301); .* as ws://"),
            ("https://[", "elsewhere"),
            ("", "elsewhere"),
        ],
    )
    def test_are_told_and_not_followed(self, location: str, shown: str) -> None:
        with FakeServer() as server:
            server.status, server.location = 301, location
            told = refusal(server.url, "sesame")
            assert all(part in told for part in shown.split(".*")) and "u:p" not in told

    def test_the_server_is_asked_again(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            server.status, server.location = 301, "https://host/v1/session"
            assert isinstance(Caller(engine).ended(), EngineUnreachable)
            server.status = None
            until(lambda: engine.healthy)


def test_no_error_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipecat_personaplex.remote.server._LOOK_SECONDS", 0.1)
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        look = engine._servers[0].look

        async def boom(self: Server) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr(type(engine._servers[0]), "look", boom)
        until(lambda: "boom" in engine.stats().servers[0].reason)
        monkeypatch.setattr(type(engine._servers[0]), "look", lambda self: look())
        until(lambda: engine.healthy)


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "ws_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeServer() as server, RemoteEngine(server.url) as engine:
        Caller(engine).ready()
