"""The programs in docs/evaluation.md run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

DOCUMENT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
PROGRAMS = re.findall(r"^```py\n(.*?)^```", DOCUMENT, re.S | re.M)


def test_they_run(tmp_path: Path) -> None:
    shutil.copy(VOICE_SAMPLE, tmp_path / "caller.wav")
    assert len(PROGRAMS) == 2
    code = "\n".join(PROGRAMS).replace('"nano"', repr(str(CHECKPOINT)))
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    *calls, last = result.stdout.splitlines()
    assert [call.split()[0] for call in calls] == ["caller.wav"] * 2
    assert last == "8000 bytes of the agent"
