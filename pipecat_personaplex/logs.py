"""Log output of the commands and the bots: readable lines, or JSON."""

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
_KNOWN_LEVELS = (*LOG_LEVELS, "CRITICAL")  # to loguru, of the standard library's

_LINE = (
    "<green>{time:YYYY-MM-DD HH:mm:ss.SSS}</green> <level>{level: <7}</level> "
    "<cyan>{extra[session]: <8}</cyan> {message}"
)


def configure_logging(
    level: str = "INFO", *, as_json: bool = False, quiet: Sequence[str] = ()
) -> None:
    """Write all log records, including those of the standard library, to standard error.

    Records about one session are logged with ``logger.bind(session=session.id)`` and show the
    session's public id; the column is empty in all other records.

    Args:
        level: The lowest level that is written: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``, in
            lower or upper case.
        as_json: Write one JSON object per line with ``time``, ``level``, ``message``, ``module``,
            the bound fields (``session``, ``client``) and, if there is one, ``exception``.
        quiet: Packages that write their INFO records only at the level ``DEBUG``.

    Raises:
        ConfigError: ``level`` is not one of the four levels.
    """
    from loguru import logger

    level = level.upper()
    if level not in LOG_LEVELS:
        raise ConfigError(f"the log level must be one of {', '.join(LOG_LEVELS)}, not {level!r}")
    logger.remove()
    logger.configure(extra={"session": ""})
    # diagnose=True would print the values of variables, which include keys and prompts.
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
    # Loguru formats the returned string again, with the fields of the record. Returning the JSON
    # itself would break on its braces.
    record["extra"]["json"] = json.dumps(fields, default=str)
    return "{extra[json]}\n"


class _ToLoguru(logging.Handler):
    """Passes records of the standard library's loggers (uvicorn, asyncio) to loguru."""

    def emit(self, record: logging.LogRecord) -> None:
        from loguru import logger

        try:
            message = record.getMessage()
            # A library may have levels of its own, which loguru knows by their number only.
            level = record.levelname if record.levelname in _KNOWN_LEVELS else record.levelno
            logger.opt(exception=record.exc_info).log(level, "{}", message)
        except Exception:
            # A log line with wrong arguments must not end the task that writes it.
            self.handleError(record)
