"""Keeps what a client has sent out of the log: Pipecat quotes it in warnings and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loguru import logger

if TYPE_CHECKING:
    from loguru import Record

# Functions of Pipecat that log what a client has sent, at WARNING and above; None for all of a
# module. Such text may be personal, of any length, and contain control characters.
_QUOTING = {
    "pipecat.processors.frameworks.rtvi.processor": None,
    "pipecat.runner.run": None,
    "pipecat.serializers.twilio": {"deserialize"},
    "pipecat.transports.smallwebrtc.connection": {"on_message"},
    "pipecat.transports.smallwebrtc.request_handler": {"handle_web_request"},
}


def hide_client_text(level: str) -> None:
    """Replace the messages of Pipecat's records that quote a client, unless the level is DEBUG."""
    if level.upper() != "DEBUG":
        logger.configure(patcher=_hide)


def _hide(record: Record) -> None:
    functions = _QUOTING.get(record["name"] or "", set())
    if functions is None or record["function"] in functions:
        record["message"] = (
            f"what a client sent could not be processed ({record['name']}, line {record['line']}); "
            "--log-level DEBUG shows it"
        )
