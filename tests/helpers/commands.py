"""Helpers for the ``personaplex`` command: arguments, processes, output files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.golden_data import CHECKPOINT
from tests.helpers.forking import run

Codes = npt.NDArray[np.int64]


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("pipecat_personaplex.cli", [str(each) for each in arguments])


def offline(
    caller: Path, folder: Path, *more: str | Path, voice: str | Path = "NATM1", greedy: bool = True
) -> list[str]:
    """Arguments of ``personaplex offline`` that write out.wav, out.json and out.npz."""
    arguments: list[str | Path] = [
        *("offline", "--model", CHECKPOINT, "--device", "cpu", "--dtype", "float32"),
        *("--voice", voice, "--input", caller, "--output", folder / "out.wav"),
        *("--output-text", folder / "out.json", "--save-tokens", folder / "out.npz"),
        *(["--greedy"] if greedy else []),
        *more,
    ]
    return [str(argument) for argument in arguments]


def tokens(folder: Path) -> dict[str, Codes]:
    with np.load(folder / "out.npz") as data:
        return dict(data)


def one_line(stderr: str) -> str:
    """The one-line error of a command that fails; asserts that there is nothing else."""
    assert stderr.startswith("error: ") and stderr.endswith("\n"), stderr
    assert stderr.count("\n") == 1 and "Traceback" not in stderr, stderr
    return stderr
