"""``RemoteEngine.start`` against a fake server: what it waits for, what it refuses, and TLS."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import EngineUnreachable, VoiceNotFound
from pipecat_personaplex.remote import RemoteEngine
from pipecat_personaplex.server.listen import tls_context
from tests.helpers.servers import self_signed, trusting
from tests.remote.fakes import FakeServer, say
from tests.remote.helpers import Caller, tone, until


class _AnswersInPlainText(socketserver.BaseRequestHandler):
    """Responds to a TLS handshake as an HTTP server without TLS does."""

    def handle(self) -> None:
        if self.request.recv(65_536):
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        while self.request.recv(65_536):  # until the client closes: no reset
            pass


@contextmanager
def plain_http_server() -> Iterator[int]:
    """Run a server without TLS; yields its port."""
    with socketserver.TCPServer(("127.0.0.1", 0), _AnswersInPlainText) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class TestStart:
    def test_start_fails_if_no_server_listens(self) -> None:
        with pytest.raises(EngineUnreachable, match=r"ws://127\.0\.0\.1:1/.*connection refused"):
            RemoteEngine("ws://127.0.0.1:1", start_seconds=0.5).start()

    @pytest.mark.parametrize(
        ("status", "reason"),
        [(401, "an API key"), (403, "this client"), (404, "not a PersonaPlex")],
    )
    def test_a_permanent_refusal_ends_the_wait(self, status: int, reason: str) -> None:
        with FakeServer() as server:
            server.status = status
            with pytest.raises(EngineUnreachable, match=rf"{reason}.*{status}"):
                RemoteEngine(server.url, start_seconds=600).start()

    def test_start_waits_for_a_server_without_room_for_connections(self) -> None:
        with FakeServer() as server:
            server.status = 503

            def make_room() -> None:
                until(lambda: server.requests)
                server.status = None

            thread = threading.Thread(target=make_room)
            thread.start()
            with RemoteEngine(server.url) as engine:
                assert engine.healthy
            thread.join()
            assert len(server.requests) >= 2, "the first was refused"

    @pytest.mark.parametrize(
        ("hello", "reason"),
        [
            ({"type": "hello", "version": 2}, "not a PersonaPlex server"),
            ({"type": "ready"}, "its first message is 'ready'"),
            ({"type": "welcome"}, "not a PersonaPlex server"),
            ({"garbage": 1}, "not a PersonaPlex server"),
        ],
    )
    def test_a_server_of_another_kind_is_refused(
        self, hello: dict[str, object], reason: str
    ) -> None:
        async def greet(websocket: ServerConnection) -> None:
            await say(websocket, **hello)

        with FakeServer(greet) as server, pytest.raises(EngineUnreachable, match=reason):
            RemoteEngine(server.url, start_seconds=600).start()

    def test_another_protocol_version_is_refused(self) -> None:
        async def greet(websocket: ServerConnection) -> None:
            await say(
                websocket,
                type="hello",
                version=2,
                model="m",
                voices=[],
                sessions=0,
                max_sessions=1,
                draining=False,
            )

        with FakeServer(greet) as server, pytest.raises(EngineUnreachable, match="version 2"):
            RemoteEngine(server.url, start_seconds=600).start()

    def test_a_server_that_sends_nothing_times_out(self) -> None:
        async def greet(websocket: ServerConnection) -> None:
            await websocket.wait_closed()

        with (
            FakeServer(greet) as server,
            pytest.raises(EngineUnreachable, match="no response within 2 s"),
        ):
            RemoteEngine(server.url, start_seconds=2.5).start()

    def test_one_reachable_server_of_two_is_enough(self) -> None:
        with FakeServer() as server, RemoteEngine(["ws://127.0.0.1:1", server.url]) as engine:
            until(lambda: engine.stats().servers[0].reason.endswith("connection refused"))
            assert engine.healthy and engine.stats().servers[1].reachable
            Caller(engine).ready().talk(0)

    def test_an_unknown_voice_is_refused(self) -> None:
        with FakeServer() as server, RemoteEngine(server.url) as engine:
            with pytest.raises(VoiceNotFound, match=r"'NATX9'.*NATF2"):
                Caller(engine, Persona("NATX9"))
            assert engine.stats().refused == 1


class TestTls:
    def test_an_untrusted_certificate_is_refused(self, tmp_path: Path) -> None:
        certificate, key = self_signed(tmp_path)
        tls = tls_context(certificate, key)
        with FakeServer(tls=tls) as server:
            with pytest.raises(EngineUnreachable, match=r"TLS failed: self.signed"):
                RemoteEngine(server.url, start_seconds=600).start()
            with RemoteEngine(server.url, ssl_context=trusting(certificate)) as engine:
                Caller(engine).ready().talk(0)

    def test_the_certificates_of_this_machine_are_read_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certificate, key = self_signed(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        read = Mock(wraps=ssl.create_default_context)
        monkeypatch.setattr(ssl, "create_default_context", read)
        with FakeServer(tls=tls_context(certificate, key)) as server:
            with RemoteEngine(server.url) as engine:
                for _ in range(2):
                    Caller(engine).ready().talk(0)
        assert read.call_count == 1

    def test_a_server_without_tls_is_refused(self) -> None:
        with plain_http_server() as port:
            url = f"wss://127.0.0.1:{port}"
            with pytest.raises(EngineUnreachable) as raised:
                RemoteEngine(url, start_seconds=600).start()
        reason = "the server does not use TLS; use ws:// instead of wss://"
        assert str(raised.value).endswith(f"{url}/v1/session: {reason}")

    def test_an_ssl_context_is_ignored_without_tls(self) -> None:
        context = ssl.create_default_context()
        with FakeServer() as server, RemoteEngine(server.url, ssl_context=context) as engine:
            assert engine._addresses[0].ssl_context is None
            [frame] = Caller(engine).ready().talk(0)
            np.testing.assert_array_equal(frame.pcm, tone(0))
