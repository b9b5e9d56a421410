"""Every code block of the README runs, on the small checkpoint in place of the 7B."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

README = Path(__file__).parent.parent / "README.md"
MODEL = "nvidia/personaplex-7b-v1"
# What this very run is made of, and what takes minutes: tests/test_bench.py runs a shorter one.
ELSEWHERE = ("make ", "personaplex bench")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.S | re.M)
    return [block for block in found if not block.startswith(ELSEWHERE)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("caller.wav", "owen.wav"):
        shutil.copy(VOICE_SAMPLE, tmp_path / name)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_there_are_blocks_to_run() -> None:
    assert len(blocks("python")) >= 1
    assert len(blocks("bash")) >= 2


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, folder: Path) -> None:
    code = block.replace(MODEL, str(CHECKPOINT))
    out = run([sys.executable, "-W", "error", "-c", code], folder)
    assert "voices: NATF2, NATM1" in out
    assert "ended: closed" in out
    assert "(24000,)" in out


@pytest.mark.parametrize("block", blocks("bash"))
def test_shell(block: str, folder: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", block.replace(MODEL, str(CHECKPOINT))], folder)
    made = {path.name for path in folder.iterdir()} - {"caller.wav", "owen.wav"}
    assert made in ({"agent.wav", "agent.json"}, {"owen.pt"})
