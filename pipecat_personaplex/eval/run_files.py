"""The files of a run: written completely or not at all, and read with errors that name them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pipecat_personaplex.errors import UserError

Content = TypeVar("Content", list[Any], dict[str, Any])


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, completely or not at all."""
    with replacing(path) as temporary:
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that replaces ``path``, once it is on the disk, if the block succeeds.

    An error of the system names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def read_stored(path: Path, kind: type[Content], keys: Collection[str], remedy: str) -> Content:
    """Read a JSON file of a run.

    Args:
        path: The file.
        kind: ``dict``: an object with these keys; ``list``: a list of such objects.
        keys: The keys.
        remedy: What to do if the file is damaged.

    Raises:
        UserError: It is damaged.
        FileNotFoundError: There is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not valid JSON ({error}); {remedy}") from None
    if not isinstance(content, kind):
        expected = "an object" if kind is dict else "a list"
        raise UserError(f"{path} is damaged: it does not hold {expected}; {remedy}")
    for each in content if isinstance(content, list) else [content]:
        require_keys(path, each, keys, remedy)
    return content


def require_keys(path: Path, content: Any, keys: Collection[str], remedy: str) -> None:
    """Check that a part of a file is an object with these keys.

    Raises:
        UserError: It is not; the message names the file and ends with the remedy.
    """
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"{path} is damaged: it has no {', '.join(missing)}; {remedy}")
