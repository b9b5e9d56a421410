"""What was said in a call, on disk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipecat_personaplex.errors import ConfigError


class CallRecord:
    """One file of JSON lines for one call: who said what, and when.

    Lines are written as turns end, so that a call that breaks off leaves all that was said.

    Args:
        folder: Where the file goes, under a name of its own: what a client calls its session
            must not choose a path.
        about: What the first line says beside the time.
    """

    def __init__(self, folder: Path, about: Mapping[str, object]):
        started = datetime.now(UTC)
        self.path = folder / f"{started:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.jsonl"
        self._write(started.isoformat(), about)

    def turn(self, role: str, content: str, timestamp: str) -> None:
        """Add a turn, unless it is empty.

        Args:
            role: ``"user"`` or ``"assistant"``.
            content: The words.
            timestamp: When the turn started, ISO 8601.
        """
        if content.strip():
            self._write(timestamp, {"role": role, "content": content})

    def _write(self, time: str, line: Mapping[str, object]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time, **line}, ensure_ascii=False) + "\n")


def record_folder(path: str) -> Path:
    """The folder for records, made if need be.

    Raises:
        ConfigError: It cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--records {path}: {error.strerror}") from None
    return folder
