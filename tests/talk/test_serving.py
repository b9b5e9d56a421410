"""The server of personaplex talk, before it serves."""

from __future__ import annotations

import socket
import time

import pytest
from pipecat.transports.smallwebrtc import transport as webrtc

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.listen import open_socket
from pipecat_personaplex.talk import serving
from pipecat_personaplex.talk.about import describe_model
from pipecat_personaplex.talk.host import TalkHost, TalkOptions
from pipecat_personaplex.talk.local_engine import LocalEngine
from pipecat_personaplex.talk.serving import TalkServer


def test_calls_do_not_depend_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> LocalEngine:
        raise ConfigError("no model today")

    monkeypatch.setattr(webrtc, "time", time)  # as Pipecat has it
    host = TalkHost(describe_model("nano"), TalkOptions())
    server = TalkServer(host, open_socket("127.0.0.1", 0), load)
    monkeypatch.setattr("time.time", lambda: 0.0)
    with pytest.raises(ConfigError, match="no model today"):
        server.run(lambda: None)
    assert webrtc.time.time() > 0


def test_a_connection_that_sends_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the server: a page in a local network is open to all its devices."""
    monkeypatch.setattr(serving, "_REQUEST_SECONDS", 0.2)
    host = TalkHost(describe_model("nano"), TalkOptions())
    listening = open_socket("127.0.0.1", 0)
    address = listening.getsockname()
    closed: list[bytes] = []

    def load() -> LocalEngine:
        with socket.create_connection(address, 10) as silent:
            closed.append(silent.recv(100))
        raise ConfigError("no model today")

    with pytest.raises(ConfigError, match="no model today"):
        TalkServer(host, listening, load).run(lambda: None)
    assert closed == [b""]
