"""The files of docker/, and the options of ``personaplex serve``."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

from pipecat_personaplex.cli.commands import app

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


class _Compose(yaml.SafeLoader):
    pass


# A tag of Compose: it removes the value of the earlier file.
_Compose.add_constructor("!reset", lambda loader, node: None)


def read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), _Compose)


def documents(folder: str) -> list[dict[str, Any]]:
    """Return every object of a folder of Kubernetes files."""
    return [
        document
        for path in sorted((DOCKER / folder).glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


@cache
def _serve() -> Any:
    group: Any = typer.main.get_command(app)
    return group.commands["serve"]


def serve_options() -> dict[str, Any]:
    """Return the options of ``personaplex serve`` by name."""
    return {name: option for option in _serve().params for name in option.opts}


def serve_environment() -> set[str]:
    """Return the environment variables that ``personaplex serve`` reads."""
    named = {option.envvar for option in _serve().params} - {None}
    return {name for each in named for name in ([each] if isinstance(each, str) else each)}


def options_of(arguments: list[str]) -> dict[str, str]:
    """Return the ``--name=value`` arguments as a dict."""
    return dict(argument.split("=", 1) for argument in arguments if argument.startswith("--"))


def stage(name: str) -> str:
    """Return a stage of the Dockerfile, one instruction a line."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.DOTALL | re.M))
    return stages[name]


def seconds(duration: str) -> float:
    """Convert a duration such as 1m30s to seconds."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(
        float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration)
    )
