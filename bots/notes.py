"""A text file in which an assistant writes notes down."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path

from bots.append_line import append_line
from bots.tool_problem import ToolProblem
from pipecat_personaplex.errors import ConfigError

_MAX_BYTES = 1_000_000


class Notes:
    """A file with one note a line, each with its time; all calls share it.

    A note is on disk when ``add`` returns. Methods block for a moment; call them from a thread
    where an event loop runs.

    Args:
        path: The file; created with its folder if it does not exist.

    Raises:
        ConfigError: The file cannot be written.

    Example::

        notes = Notes(Path("notes.txt"))
        notes.add("Buy eggs.")
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            raise ConfigError(f"--notes {path}: {error.strerror}") from None

    def add(self, text: str) -> str:
        """Append a note; returns its line.

        Raises:
            ToolProblem: The file is full.
            OSError: The note cannot be written; the file is as it was.
        """
        line = f"{datetime.now():%Y-%m-%d %H:%M}  {' '.join(text.split())}"
        with self._lock:
            if self.path.exists() and self.path.stat().st_size > _MAX_BYTES:
                raise ToolProblem("The notes file is full. Nothing was written.")
            append_line(self.path, line, sync=True)
        return line

    def find(self, words: str, count: int) -> list[str]:
        """The newest notes that contain all of these words, the newest first."""
        wanted = words.lower().split()
        with self._lock:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [line for line in lines if all(word in line.lower() for word in wanted)]
        return found[: -count - 1 : -1]
