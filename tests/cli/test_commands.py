"""The command as a whole: mistakes of the user, failures, exit codes and help."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

from pipecat_personaplex import Engine, __version__
from pipecat_personaplex.cli import main
from pipecat_personaplex.cli import offline as offline_module
from pipecat_personaplex.cli.commands import app
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import SessionFailed
from tests.golden_data import CHECKPOINT
from tests.helpers.commands import offline, one_line, process


@pytest.fixture
def bad_files(tmp_path: Path, callers: Path) -> Path:
    """The working folder of the mistakes below."""
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), SAMPLE_RATE)
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "voice.pt").write_bytes(b"no voice")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "caller.wav").write_bytes((callers / "short.wav").read_bytes())
    (tmp_path / "link.wav").symlink_to("caller.wav")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


MISTAKES = {
    "unknown voice": (["--voice", "NATX9"], ["'NATX9'", "NATF2, NATM1"]),
    "voice with suffix": (["--voice", "NATF2.pt"], ["NATF2.pt", "no such file"]),
    "missing voice file": (["--voice", "nowhere/owen"], ["nowhere/owen", "no such file"]),
    "damaged voice": (["--voice", "voice.pt"], ["voice.pt"]),
    "voice is not audio": (["--voice", "text.wav"], ["text.wav"]),
    "missing input": (["--input", "none.wav"], ["none.wav", "does not exist"]),
    "input is not audio": (["--input", "text.wav"], ["text.wav", "cannot be read"]),
    "empty input": (["--input", "empty.wav"], ["empty.wav", "no samples"]),
    "input is a folder": (["--input", "folder.wav"], ["folder.wav"]),
    "empty model folder": (["--model", "model"], ["voices.tgz"]),
    "no such model": (["--model", "no-model"], ["'no-model'"]),
    "no such repository form": (["--model", "../model/../x"], ["repo id"]),
    "temperature": (["--temperature-audio", "11"], ["temperature_audio", "0 (greedy) to 10"]),
    "temperature nan": (["--temperature-text", "nan"], ["temperature_text"]),
    "temperature word": (["--temperature-text", "hot"], ["--temperature-text"]),
    "top k": (["--top-k-audio", "0"], ["top_k_audio", "from 1 to"]),
    "seed": (["--seed", "-1"], ["seed must be", "-1"]),
    "seed word": (["--seed", "x"], ["--seed", "see personaplex offline --help"]),
    "greedy and not": (["--greedy", "--temperature-text", "1"], ["--greedy", "--temperature-text"]),
    "device": (["--device", "tpu"], ["'tpu'"]),
    "device with a zero": (["--device", "cuda:01"], ["'cuda:01'"]),
    "device beyond torch's numbers": (["--device", "cuda:256"], ["'cuda:256'"]),
    "device that is not there": (["--device", "cuda:99"], ["cuda:99 does not exist"]),
    "dtype": (["--dtype", "float16"], ["'float16'", "'bfloat16'"]),
    "threads": (["--threads", "-1"], ["--threads"]),
    "output folder": (["--output", "none/out.wav"], ["none", "no folder"]),
    "output below a file": (["--output", "text.wav/out.wav"], ["no folder"]),
    "output is a folder": (["--output", "folder.wav"], ["folder.wav", "regular file"]),
    "output is no wav": (["--output", "out.flac"], ["out.flac", ".wav"]),
    "output is the input": (["--output", "caller.wav"], ["overwrite the input"]),
    "output links to the input": (["--output", "link.wav"], ["overwrite the input"]),
    "output's name is too long": (
        ["--output-text", "x" * 252 + ".txt"],
        ["--output-text", "name too long; choose another name"],
    ),
    "text is the input": (["--output-text", "caller.wav"], ["--output-text", "the input"]),
    "output is the voice": (
        ["--voice", "text.wav", "--output", "text.wav"],
        ["overwrite the input"],
    ),
    "outputs are the same": (["--save-tokens", "out.wav"], ["--save-tokens", "--output"]),
    "no such option": (["--loud"], ["--loud"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line(
    bad_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    mistake: str,
) -> None:
    monkeypatch.chdir(bad_files)
    before = sorted(bad_files.iterdir())
    arguments = ["offline", "--model", str(CHECKPOINT), "--voice", "NATM1", "--output", "out.wav"]
    given, expected = MISTAKES[mistake]
    assert main([*arguments, "--input", "caller.wav", *given]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert all(part in one_line(err) for part in expected), err
    assert sorted(bad_files.iterdir()) == before


def test_mistake_of_a_process_is_one_line(tmp_path: Path) -> None:
    result = process(*offline(tmp_path / "none.wav", tmp_path))
    assert (result.returncode, result.stdout) == (2, "")
    assert "none.wav does not exist" in one_line(result.stderr)


# Failures, and the files that remain.


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SessionFailed("the session was lost"), 1, "the session was lost"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 2, "/a: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_failure_has_an_exit_code_and_one_line(
    callers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def load(*args: object, **kwargs: object) -> Engine:
        raise error

    monkeypatch.setattr(Engine, "load", load)
    arguments = offline(callers / "short.wav", tmp_path)
    assert main(arguments) == code
    assert capsys.readouterr().err == f"error: {line}\n"
    assert main(["--debug", *arguments]) == code
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith(f"error: {line}\n")


def test_a_second_interrupt_is_ignored_while_the_process_exits(
    callers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **kwargs: object) -> Engine:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setattr(sys, "argv", ["personaplex", *offline(callers / "short.wav", tmp_path)])
    try:
        assert main() == 130
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


class _Interrupted:
    def __set_name__(self, owner: type, name: str) -> None:
        raise KeyboardInterrupt


def interrupted_in_exec() -> None:
    exec("raise KeyboardInterrupt")


def interrupted_in_a_class() -> None:
    type("Built", (), {"field": _Interrupted()})


@pytest.mark.parametrize("interrupted", [interrupted_in_exec, interrupted_in_a_class])
def test_an_interrupt_while_modules_are_imported(
    interrupted: Callable[[], None], tmp_path: Path
) -> None:
    """Python wraps it in another error, or would end ``python -m`` by the signal."""
    program = f"""
import sys
from pipecat_personaplex.cli.commands import app, main
from tests.cli.test_commands import {interrupted.__name__}

app.command("stopped")({interrupted.__name__})
sys.argv = ["personaplex", "stopped"]
sys.exit(main())
"""
    (tmp_path / "stopped.py").write_text(program)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-m", "stopped"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_bug_is_raised_with_its_traceback(monkeypatch: pytest.MonkeyPatch, callers: Path) -> None:
    def load(*args: object, **kwargs: object) -> Engine:
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "load", load)
    with pytest.raises(ZeroDivisionError):
        main(offline(callers / "short.wav", callers.parent))


def test_failed_write_leaves_the_old_outputs(
    callers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out.wav").write_bytes(b"before")
    monkeypatch.setattr(offline_module, "_write_tokens", fail)
    assert main(offline(callers / "short.wav", tmp_path)) == 1
    assert one_line(capsys.readouterr().err) == f"error: {tmp_path}: No space left on device\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.wav"]
    assert (tmp_path / "out.wav").read_bytes() == b"before"


def test_closed_standard_output_is_one_line() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "pipecat_personaplex.cli", "--version"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 1
    assert "output was closed" in one_line(result.stderr)


# Help.


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"personaplex {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["voices"]])
def test_no_command_shows_the_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Usage: personaplex" in out and err == ""


def test_help_shows_options_and_examples_without_torch() -> None:
    code = (
        "import sys; from pipecat_personaplex.cli import main; main(['offline', '--help']);"
        "assert not {'torch', 'numpy', 'soundfile'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    for part in ("Conversation", "Sampling", "Model", "PERSONAPLEX_MODEL", "Examples", "--greedy"):
        assert part in result.stdout


EXAMPLE_TEXTS = [
    *(command.epilog or "" for command in app.registered_commands),
    *(
        command.epilog or ""
        for group in app.registered_groups
        for command in (group.typer_instance.registered_commands if group.typer_instance else ())
    ),
]
EXAMPLES = [
    line[line.index("personaplex ") :]
    for text in EXAMPLE_TEXTS
    for line in text.splitlines()
    if "personaplex " in line
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_of_the_help_are_valid(example: str) -> None:
    """Each example names an existing command, existing options, and values of the right type."""
    words = shlex.split(example)
    end = next((index for index, word in enumerate(words) if word in ("|", ">>")), len(words))
    command, arguments = typer.main.get_command(app), words[1:end]
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("example", arguments)  # Raises for a mistake in the arguments.


def test_every_command_has_an_example() -> None:
    assert all("personaplex " in text for text in EXAMPLE_TEXTS)
