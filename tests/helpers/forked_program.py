"""A program for the tests of ``forking``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "wait":
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("ready", flush=True)
        signal.pause()
    elif command == "where":
        print(Path.cwd())
    else:
        print(os.environ.get("GREETING"), *words)
        print("an error", file=sys.stderr)
        raise SystemExit(3)
