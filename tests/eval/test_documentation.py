"""The programs in docs/evaluation.md run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

DOCUMENT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
PROGRAMS = re.findall(r"^```py\n(.*?)^```", DOCUMENT, re.S | re.M)
OUTPUTS = ("caller.wav", "8000 bytes of the agent")


def test_there_are_two() -> None:
    assert len(PROGRAMS) == len(OUTPUTS)


@pytest.mark.parametrize(("program", "output"), list(zip(PROGRAMS, OUTPUTS, strict=False)))
def test_it_runs(program: str, output: str, tmp_path: Path) -> None:
    shutil.copy(VOICE_SAMPLE, tmp_path / "caller.wav")
    code = program.replace('"nano"', repr(str(CHECKPOINT)))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert output in result.stdout
