"""The transcript of a call as a file of JSON lines."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from bots.append_line import append_line
from pipecat_personaplex.errors import ConfigError


class CallRecord:
    """One file of JSON lines for one call: each turn with its speaker and its time.

    A line is written when its turn ends, so a call that breaks off loses only the current turn. A
    line that cannot be written, such as on a full disk, is left out and the log says so.

    Args:
        folder: Where the file is created. The file name is generated: it must not depend on
            anything that a client sends.
        about: Fields of the first line, in addition to the time.

    Example::

        record = CallRecord(record_folder("calls"), {"voice": "NATF2"})
        record.add_turn("user", "One spicy, please.", "2026-01-31T12:00:00+00:00")
    """

    def __init__(self, folder: Path, about: Mapping[str, object]):
        started = datetime.now(UTC)
        self.path = folder / f"{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.jsonl"
        self._write(started.isoformat(), about)

    def add_turn(self, role: str, content: str, timestamp: str) -> None:
        """Write a turn, unless it has no words.

        Args:
            role: ``"user"`` or ``"assistant"``.
            content: The words.
            timestamp: When the turn started, ISO 8601.
        """
        if content.strip():
            self._write(timestamp, {"role": role, "content": content})

    def _write(self, time: str, fields: Mapping[str, object]) -> None:
        try:
            # The escape of a lone surrogate is JSON's too.
            append_line(self.path, json.dumps({"time": time, **fields}, ensure_ascii=False))
        except OSError as error:  # The call goes on: a full disk must not end it.
            logger.error("a line is missing in the call record {}: {}", self.path, error.strerror)


def record_folder(path: str) -> Path:
    """The folder for call records, created if it does not exist.

    Raises:
        ConfigError: The folder cannot be created.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--records {path}: {error.strerror}") from None
    return folder
