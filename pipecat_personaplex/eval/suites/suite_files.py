"""What the loaders share: a suite's description, and reading its files with clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.eval.items import Item

CONVERSATION_PROMPT = "You enjoy having a good conversation."
TEACHER_PROMPT = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and "
    "engaging way."
)
"""The prompts that the published runs of Full-Duplex-Bench used."""


@dataclass(frozen=True)
class Suite:
    """A benchmark, or a layout of files.

    Attributes:
        name: Its name on the command line.
        title: What it is, for tables and pages.
        source: Address and licence of its data, for the error if they are missing; empty for a
            suite that needs no data.
        load: Yields its items from a folder; the folder is None for a suite that generates them.
    """

    name: str
    title: str
    source: str
    load: Callable[[Path | None], Iterator[Item]]

    def items(self, data: Path | None, limit: int = 0) -> Iterator[Item]:
        """Yield the items, at most ``limit`` of each group if it is not 0.

        Raises:
            UserError: The data is missing or a file of it is not valid.
        """
        counts: dict[str, int] = {}
        for item in self.load(data):
            counts[item.group] = counts.get(item.group, 0) + 1
            if not limit or counts[item.group] <= limit:
                yield item


def require_folder(data: Path | None, name: str, source: str) -> Path:
    """Return the folder of a suite's data.

    Raises:
        UserError: It was not given or does not exist; the message has address and licence.
    """
    if data is None:
        raise UserError(f"suite {name} needs --data DIR; {source}")
    if not data.is_dir():
        raise UserError(f"suite {name}: there is no folder {data}; {source}")
    return data


def find_root(data: Path, tasks: Sequence[str], name: str, source: str) -> Path:
    """Return the folder, at most two levels below ``data``, that contains one of ``tasks``.

    Raises:
        UserError: No such folder exists.
    """
    for pattern in ("", "*/", "*/*/"):
        for task in tasks:
            for found in sorted(data.glob(f"{pattern}{task}")):
                if found.is_dir():
                    return found.parent
    raise UserError(f"suite {name}: {data} has none of the folders {', '.join(tasks)}; {source}")


def item_folders(task: Path) -> list[Path]:
    """The folders of a task's items, numbers in numeric order."""
    folders = [path for path in task.iterdir() if path.is_dir()] if task.is_dir() else []
    return sorted(folders, key=lambda path: (not path.name.isdigit(), path.name.zfill(12)))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: It is missing or not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


@contextmanager
def events_of(source: Path) -> Iterator[None]:
    """Create events. The message of an error begins with the file or folder they come from.

    Raises:
        UserError: An event is invalid.
    """
    try:
        yield
    except ConfigError as error:
        raise UserError(f"{source}: {error}") from None


def first_timestamp(path: Path) -> tuple[float, float]:
    """Start and end of the first annotation of a file of Full-Duplex-Bench.

    Raises:
        UserError: The file has no annotation of the form ``[{"timestamp": [start, end]}]``.
    """
    return timestamps(path)[0]


def timestamps(path: Path) -> list[tuple[float, float]]:
    """Start and end of each annotation of a file of Full-Duplex-Bench.

    Raises:
        UserError: The file has no annotation of the form ``[{"timestamp": [start, end]}]``.
    """
    content = read_json(path)
    try:
        found = [(float(each["timestamp"][0]), float(each["timestamp"][1])) for each in content]
    except (TypeError, KeyError, IndexError, ValueError):
        found = []
    if not found:
        raise UserError(f'{path} must have the form [{{"timestamp": [start, end]}}, ...]')
    return found
