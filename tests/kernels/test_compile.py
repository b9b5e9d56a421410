"""The attention kernels compile for GPUs that are not there, and as fast code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_kernels_compile_from_ampere_to_blackwell(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.compile_for_gpus"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert {report["capability"] for report in reports} == {80, 89, 90, 100}
    for report in reports:
        # Keys and values come 16 bytes a thread, behind the one block that is being computed.
        assert "0x10" in report["copies"], report
        assert report["layout_changes_in_loop"] == 0, report
        # Three programs on the smallest of multiprocessors, that of an RTX 4090.
        assert 3 * (report["shared_bytes"] + 1024) <= 100 << 10, report
