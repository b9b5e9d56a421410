"""The files of docker/, and what the command line knows of their options."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

from pipecat_personaplex.cli.app import app

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


class _Compose(yaml.SafeLoader):
    pass


# Compose's own tag: whatever the file before this one said is taken back.
_Compose.add_constructor("!reset", lambda loader, node: None)


def read_yaml(path: Path) -> Any:
    return yaml.load(path.read_text(), _Compose)


def documents(folder: str) -> list[dict[str, Any]]:
    """Every object of a folder of Kubernetes files."""
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
    """Options of ``personaplex serve`` by their names."""
    return {name: option for option in _serve().params for name in option.opts}


def serve_environment() -> set[str]:
    """Variables that ``personaplex serve`` reads."""
    named = {option.envvar for option in _serve().params} - {None}
    return {name for each in named for name in ([each] if isinstance(each, str) else each)}


def options_of(arguments: list[str]) -> dict[str, str]:
    """``--name=value`` arguments."""
    return dict(argument.split("=", 1) for argument in arguments if argument.startswith("--"))


def stage(name: str) -> str:
    """A stage of the Dockerfile, as one line an instruction."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    text = text.replace("\\\n", " ")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", text, re.DOTALL | re.M))
    return stages[name]


def seconds(duration: str) -> float:
    """What Compose and Docker mean by 1m30s."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(
        float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([hms])", duration)
    )
