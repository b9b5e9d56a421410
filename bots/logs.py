"""One log output for a bot: its own lines, Pipecat's and uvicorn's, as text or JSON."""

from __future__ import annotations

import logging
from typing import Any

import uvicorn.config
import uvicorn.lifespan.on
import uvicorn.server
from loguru import logger
from pipecat.runner import run as runner

from pipecat_personaplex.logs import configure_logging
from pipecat_personaplex.talk.client_text import hide_client_text

_START_AND_STOP_FILES = {uvicorn.server.__file__, uvicorn.lifespan.on.__file__}


class _RunnerLogger:
    """The logger for Pipecat's runner, without the methods that would replace the output.

    Once it has parsed the options, ``pipecat.runner.run.main`` removes all outputs of loguru and
    adds one at the level DEBUG, about 200 lines a call.
    """

    def remove(self, *args: object, **kwargs: object) -> None:
        """Do nothing: the output of ``configure_bot_logging`` stays."""

    def add(self, *args: object, **kwargs: object) -> None:
        """Do nothing: the output of ``configure_bot_logging`` is the only one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(logger, name)


class _StartAndStop(logging.Filter):
    """Drops uvicorn's INFO lines, except those about the start and the end of the server."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write this record."""
        return record.levelno >= logging.WARNING or record.pathname in _START_AND_STOP_FILES


def configure_bot_logging(level: str, *, as_json: bool) -> None:
    """Send all log lines to standard error in one format, and keep Pipecat from changing that.

    At the level INFO a call is a handful of lines: accepted, session started, ended, or refused.
    Pipecat's INFO lines, some of which contain what a caller typed, need the level DEBUG, and so
    do those of the service and uvicorn's lines about requests and connections.

    Args:
        level: The least severe level that is written.
        as_json: Write JSON objects instead of text.

    Raises:
        ConfigError: There is no such level.
    """
    # LoggedEngine logs the sessions of a call, with the client; the service would log them again.
    quiet = ["pipecat", "pipecat_personaplex.service"]
    configure_logging(level, as_json=as_json, quiet=quiet)
    hide_client_text(level)
    setattr(runner, "logger", _RunnerLogger())  # noqa: B010  mypy: not a loguru Logger
    # The runner calls uvicorn.run with the default configuration, this dictionary. Without
    # handlers of their own, uvicorn's loggers pass their records on to the root logger, which
    # configure_logging has connected to loguru.
    debug = level.upper() == "DEBUG"
    uvicorn.config.LOGGING_CONFIG.update(
        formatters={},
        handlers={},
        filters={"start and stop": {"()": _StartAndStop}},
        loggers={
            "uvicorn": {"level": "INFO"},
            "uvicorn.error": {"filters": [] if debug else ["start and stop"]},
            "uvicorn.access": {"level": "INFO" if debug else "WARNING"},
        },
    )
