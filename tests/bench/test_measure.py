"""tests/gpu/measure.sh, on the tiny checkpoint and a CPU, and the packages that it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_data import CHECKPOINT

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/gpu/measure.sh"
SMALL = {
    "PYTHON": sys.executable,
    "MODEL": f"--model {CHECKPOINT} --threads 1",
    "DEVICE": "cpu",
    "FRAMES": "2",
    "MINUTES": "0.001",
    "CALLERS": "1,2",
    "CALLERS_BF16": "1",
}


def measure(*arguments: str | Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **SMALL, **changes},
    )


def fails(folder: Path) -> str:
    """A program that fails as ``personaplex bench`` does for a model that is not there."""
    python = folder / "python"
    python.write_text("#!/bin/sh\nexit 2\n")
    python.chmod(0o755)
    return str(python)


def test_run_writes_results_tables_and_picture(tmp_path: Path) -> None:
    result = measure(tmp_path, "many-int8")
    assert result.returncode == 0, result.stdout
    [line] = (tmp_path / "results.jsonl").read_text().splitlines()
    run = json.loads(line)
    assert run["run"] == "many-int8" and set(run["report"]["sessions"]) == {"1", "2"}
    tables = (tmp_path / "tables.md").read_text()
    assert tables.startswith("## many-int8\n\n`personaplex bench --model")
    assert "| callers | window filled |" in tables and "{" not in tables
    assert (tmp_path / "many-int8.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "one-int4: exit code 2"),
        ({"BUDGET_SECONDS": "0"}, "one-int4: skipped"),
    ],
)
def test_skipped_and_failed_runs_are_named(
    tmp_path: Path, changes: dict[str, str], expected: str
) -> None:
    result = measure(tmp_path, "one-int4", "many-bf16", PYTHON=fails(tmp_path), **changes)
    assert result.returncode == 1
    assert expected in result.stdout
    assert result.stdout.endswith("not measured: one-int4 many-bf16\n")
    assert (tmp_path / "results.jsonl").read_text() == ""


@pytest.mark.parametrize(("mib", "callers"), [("81559", "32,44"), ("143771", "64,80")])
def test_batch_size_follows_the_card_memory(tmp_path: Path, mib: str, callers: str) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho {mib}\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    result = measure(tmp_path, "many-int8", PATH=path, CALLERS="", PYTHON=fails(tmp_path))
    assert f"--sessions {callers} --quantization int8" in result.stdout


def test_without_arguments_it_prints_its_usage() -> None:
    result = measure()
    assert result.returncode == 2
    assert result.stdout.startswith("Measure a CUDA card")


# Machines with a card to measure often have torch and few other packages.
WITHOUT_PACKAGES = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
from pipecat_personaplex.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_bench_runs_without_optional_packages() -> None:
    absent = "av pipecat pyloudnorm soundfile soxr sphn starlette uvicorn websockets"
    options = ["--model", str(CHECKPOINT), "--device", "cpu", "--threads", "1", "--frames", "1"]
    result = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_PACKAGES.format(absent=set(absent.split()))),
            *("bench", *options, "--sessions", "1", "--measure", "steps"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["sessions"]["1"]["p50_ms"] > 0
