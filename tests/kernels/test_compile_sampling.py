"""The draw compiles for GPUs that are not there: in registers, and with an exact logarithm."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.compiling import compile_reports

pytest.importorskip("triton")


def test_the_draw_compiles_from_ampere_to_blackwell(tmp_path: Path) -> None:
    reports = compile_reports("compile_sampling", tmp_path)
    assert [report["capability"] for report in reports] == [80, 90, 100, 90, 90]
    for report in reports:
        assert not report["local_memory"], report
        # Noise near the ends of its range would be anything.
        assert not report["approximate_logarithm"], report
        assert report["shared_bytes"] <= 48 << 10, report
