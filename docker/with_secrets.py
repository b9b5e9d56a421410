"""Run a program with the secrets of its container in its environment.

python with_secrets.py PROGRAM ARGUMENT...

A file of /run/secrets that is named like a variable, in capitals, becomes that variable. Neither
the image nor `docker inspect` shows it; a variable that is set already wins.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

NAME = re.compile(r"[A-Z][A-Z0-9_]*")


def secrets(folder: Path) -> dict[str, str]:
    """The files of a folder that are named like variables, and what they hold."""
    if not folder.is_dir():
        return {}
    return {
        file.name: file.read_text(encoding="utf-8").strip()
        for file in sorted(folder.iterdir())
        if NAME.fullmatch(file.name)
    }


if __name__ == "__main__":
    environment = secrets(Path("/run/secrets")) | os.environ
    # In place of this process: signals reach the program itself.
    os.execvpe(sys.argv[1], sys.argv[1:], environment)
