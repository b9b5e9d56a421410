"""The draw compiles for GPUs that are not there: in registers, and with an exact logarithm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def test_the_draw_compiles_from_ampere_to_blackwell(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_sampling"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert [report["capability"] for report in reports] == [80, 90, 100]
    for report in reports:
        assert not report["local_memory"], report
        # Noise near the ends of its range would be anything.
        assert not report["approximate_logarithm"], report
        assert report["shared_bytes"] <= 48 << 10, report
