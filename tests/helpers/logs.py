"""Log records of a test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from loguru import logger


@dataclass
class LogRecords:
    """Records as ``(session, client, level, message)``; session and client may be empty."""

    records: list[tuple[str, str, str, str]] = field(default_factory=list)

    def of_session(self, session: str) -> list[str]:
        """Return the messages with this session's id."""
        return [message for bound, _, _, message in self.records if bound == session]

    def containing(self, text: str) -> list[tuple[str, str, str, str]]:
        """Return the records whose message contains a text."""
        return [record for record in self.records if text in record[3]]


@contextmanager
def recorded(level: str = "INFO") -> Iterator[LogRecords]:
    """Record what is logged inside the ``with`` block."""
    log = LogRecords()

    def write(message: object) -> None:
        record = message.record  # type: ignore[attr-defined]
        extra = record["extra"]
        log.records.append(
            (
                *(extra.get("session", ""), extra.get("client", "")),
                *(record["level"].name, record["message"]),
            )
        )

    sink = logger.add(write, level=level)
    try:
        yield log
    finally:
        logger.remove(sink)


@contextmanager
def logging_restored() -> Iterator[None]:
    """Restore logging: a command logs to the standard error of its test, closed afterwards."""
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.level, root.handlers[:] = before
    logger.remove()
    logger.configure(extra={})
    logger.add(sys.__stderr__)
