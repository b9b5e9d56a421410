"""What commands and bots write to the log, and how: readable lines, or JSON."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from pipecat_personaplex.errors import ConfigError

if TYPE_CHECKING:
    from loguru import Record

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

_LINE = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> <level>{level: <7}</level> "
    "<cyan>{extra[session]: <8}</cyan> {message}"
)


def configure_logging(
    level: str = "INFO", *, as_json: bool = False, quiet: Sequence[str] = ()
) -> None:
    """Send all log lines, those of the standard library included, to standard error.

    A line about one session carries the session's public id, which
    ``logger.bind(session=session.id)`` adds; other lines leave that column empty.

    Args:
        level: The least severe level that is written: ``DEBUG``, ``INFO``, ``WARNING`` or
            ``ERROR``, in small or capital letters.
        as_json: Write one JSON object a line: ``time``, ``level``, ``message``, ``module`` and
            what is bound to the line (``session``, ``client``), ``exception`` where there is one.
        quiet: Packages that write their INFO lines only at the level ``DEBUG``.

    Raises:
        ConfigError: There is no such level.
    """
    from loguru import logger

    level = level.upper()
    if level not in LOG_LEVELS:
        raise ConfigError(f"the log level must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
    logger.remove()
    logger.configure(extra={"session": ""})
    # Not diagnose: it prints the values of variables, keys and callers' prompts among them.
    logger.add(
        sys.stderr,
        level=level,
        filter={package: "WARNING" for package in quiet if level == "INFO"},
        format=_json_line if as_json else _LINE,
        diagnose=False,
        backtrace=False,
    )
    logging.basicConfig(handlers=[_ToLoguru()], level=logging.WARNING, force=True)


def _json_line(record: Record) -> str:
    fields: dict[str, object] = {
        "time": record["time"].isoformat(),
        "level": record["level"].name,
        "message": record["message"],
        "module": record["name"],
        **{name: value for name, value in record["extra"].items() if value and name != "json"},
    }
    if record["exception"] is not None:
        fields["exception"] = "".join(traceback.format_exception(*record["exception"]))
    # Loguru formats what is returned here once more, with the record's fields.
    record["extra"]["json"] = json.dumps(fields, default=str)
    return "{extra[json]}\n"


class _ToLoguru(logging.Handler):
    """Passes records of the standard library's loggers (uvicorn, asyncio) on to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        from loguru import logger

        message = record.getMessage()
        logger.opt(exception=record.exc_info).log(record.levelname, "{}", message)
