"""Appending to a text file whose disk may be full."""

from __future__ import annotations

import os
from io import SEEK_END
from pathlib import Path


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append a line to a file, or nothing: the next line must not be glued to half of this one.

    Args:
        path: The file; created if it does not exist.
        line: The line without its end. A lone surrogate is written as an escape.
        sync: Return only once the line is on disk.

    Raises:
        OSError: The line cannot be written, such as on a full disk.
    """
    rest = f"{line}\n".encode("utf-8", "backslashreplace")
    with path.open("ab", buffering=0) as file:
        start = file.seek(0, SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise
