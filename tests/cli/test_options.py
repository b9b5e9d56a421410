"""The engine options that several commands share."""

from __future__ import annotations

import inspect

import pytest
import typer

from pipecat_personaplex.cli.commands import app
from pipecat_personaplex.cli.options import EngineOptions, engine_options
from pipecat_personaplex.config import EngineConfig

ALL = {
    *("--model", "--device", "--dtype", "--quantization", "--kv-dtype", "--context", "--threads"),
    *("--adapter", "--cuda-graphs", "--keep-persona", "--dc-blocker"),
}
OF_COMMANDS = {
    "offline": ALL,
    "bench": ALL - {"--keep-persona", "--dc-blocker"},
    "serve": ALL,
    "drift": ALL - {"--cuda-graphs", "--keep-persona", "--dc-blocker"},
    # --quantization is a required option of the command itself.
    "quantize": {"--model", "--adapter", "--device", "--quantization"},
    "voices list": {"--model", "--device"},
    # --dtype is an option of the command itself.
    "voices encode": {"--model", "--adapter", "--device", "--dtype"},
}
VALUES = [
    *(
        "--model",
        "nano",
        "--adapter",
        "owner/adapter",
        "--device",
        "cuda:1",
        "--dtype",
        "bfloat16",
        "--quantization",
        "int8",
    ),
    *("--kv-dtype", "fp8", "--context", "500", "--threads", "3", "--no-cuda-graphs"),
    *("--no-keep-persona", "--no-dc-blocker"),
]


def parse(*arguments: str) -> tuple[EngineOptions, int]:
    """Run a command with the engine options and an option of its own; return what it got."""
    given: list[tuple[EngineOptions, int]] = []
    small = typer.Typer()

    @small.command()
    @engine_options()
    def command(options: EngineOptions, size: int = 1) -> None:
        given.append((options, size))

    small(arguments, standalone_mode=False)
    return given[0]


def test_options_become_one_object() -> None:
    assert parse() == (EngineOptions("auto", EngineConfig()), 1)
    config = EngineConfig(
        adapter="owner/adapter",
        device="cuda:1",
        dtype="bfloat16",
        quantization="int8",
        kv_dtype="fp8",
        context=500,
        cpu_threads=3,
        cuda_graphs=False,
        keep_persona=False,
        dc_blocker=False,
    )
    assert parse(*VALUES, "--size", "2") == (EngineOptions("nano", config), 2)
    [plain, auto] = [parse("--quantization", name)[0].config for name in ("none", "auto")]
    assert (plain.quantization, auto.quantization) == (None, "auto")


@pytest.mark.parametrize("name", OF_COMMANDS)
def test_commands_offer_the_options_that_they_use(name: str) -> None:
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]
    offered = {option for parameter in command.params for option in parameter.opts}
    assert offered & ALL == OF_COMMANDS[name]
    for parameter in command.params:
        advised = {option for option in ALL if option in (getattr(parameter, "help", "") or "")}
        assert advised <= offered, parameter.name


def test_decorated_command_hides_the_object_from_typer() -> None:
    @engine_options("model", "device")
    def command(options: EngineOptions, size: int = 1) -> None:
        pass

    assert list(inspect.signature(command).parameters) == ["model", "device", "size"]


def test_model_given_by_name_is_not_resolved(capsys: pytest.CaptureFixture[str]) -> None:
    assert EngineOptions("./auto", EngineConfig()).resolve_model() == "./auto"
    assert capsys.readouterr() == ("", "")
