"""Where a run is written: checked before any work starts, and by one process at a time."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipecat_personaplex.errors import UserError

RUN_FILE = "run.json"
_LOCK_FILE = ".lock"


def check_target(path: Path) -> None:
    """Check that a run can be created or continued in a folder.

    Raises:
        UserError: The path holds something else, or cannot be written.
    """
    existing = next(each for each in [path, *path.absolute().parents] if os.path.lexists(each))
    if not existing.is_dir():
        raise UserError(f"--out {path}: {existing} is not a folder; give another --out")
    if not os.access(existing, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"--out {path}: no permission to write to {existing}; give another --out")
    if existing == path and not (path / RUN_FILE).is_file():
        if any(each.name != _LOCK_FILE for each in path.iterdir()):
            raise UserError(f"{path} exists and is not a run; give another --out")


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Be the only process that adds calls to a run while the block runs.

    The system releases the lock when the process ends, however it ends.

    Raises:
        UserError: Another process adds calls.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / _LOCK_FILE).open("ab") as file:
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise
            raise UserError(
                f"another process is writing to {path}; wait for it, or give another --out"
            ) from None
        yield
