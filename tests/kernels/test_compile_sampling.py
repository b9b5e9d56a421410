"""The sampling kernels compile for other GPUs: in registers and with an exact logarithm."""

from __future__ import annotations

import pytest

from tests.kernels.compiling import compile_reports

pytest.importorskip("triton")


def test_sampling_compiles_from_ampere_to_blackwell() -> None:
    reports = compile_reports("compile_sampling")
    assert [report["capability"] for report in reports] == [80, 100, 90, 90]
    for report in reports:
        assert not report["local_memory"], report
        # An approximate logarithm would spoil the noise near the ends of its range.
        assert not report["approximate_logarithm"], report
        assert report["shared_bytes"] <= 48 << 10, report
