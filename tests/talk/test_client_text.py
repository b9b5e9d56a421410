"""What clients send does not reach the log."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from typer.testing import CliRunner

from pipecat_personaplex.cli import commands, talk
from pipecat_personaplex.cli.commands import app
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.talk.client_text import hide_client_text
from tests.helpers.logs import recorded


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    logger.configure(patcher=lambda record: None)


class Channel:
    """A data channel that keeps what Pipecat does with a message."""

    readyState = "connecting"

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def on(self, event: str) -> Any:
        return lambda handler: self.handlers.setdefault(event, handler)


async def quoted(text: str) -> str:
    """What Pipecat logs of a message that is no JSON."""
    connection = SmallWebRTCConnection()
    channel = Channel()
    connection.pc.emit("datachannel", channel)
    with recorded("WARNING") as log:
        await channel.handlers["message"](text)
    await connection.disconnect()
    return "\n".join(message for *_, message in log.records)


async def test_a_message_that_is_no_json_is_not_quoted() -> None:
    assert "secret" in await quoted("my secret")
    hide_client_text("debug")
    assert "secret" in await quoted("my secret")
    hide_client_text("WARNING")
    logged = await quoted("my secret\n\x1b[2J")
    assert "secret" not in logged and "\x1b" not in logged
    assert "what a client sent could not be processed" in logged and "DEBUG shows it" in logged


@pytest.mark.parametrize("debug", [False, True])
def test_the_page_shows_it_at_debug_only(debug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    for module in (talk, commands):
        monkeypatch.setattr(module, "configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(talk, "hide_client_text", levels.append)
    arguments = ["--public-url", "https://a.example", "--share-on-lan", "--log-level", "error"]
    options = ["--debug"] if debug else []
    result = CliRunner().invoke(app, [*options, "talk", *arguments], obj=SimpleNamespace())
    assert isinstance(result.exception, ConfigError), "the page is not served"
    assert levels == ["debug" if debug else "error"]
