"""The GEMM and depth kernels compile to fast code for GPUs that this machine lacks."""

from __future__ import annotations

import sys

import pytest

from tests.kernels.compiling import compile_reports

pytest.importorskip("triton")

# Shared memory of a block on the smallest multiprocessors (8.6 and 8.9) and on the others.
SHARED_SMALL, SHARED_LARGE = 99 << 10, 163 << 10


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
def test_kernels_compile_from_ampere_to_blackwell() -> None:
    reports = compile_reports("compile_gemm")
    assert {report["capability"] for report in reports} == {80, 89, 90, 100}
    for report in reports:
        # Each thread loads weights in 16 bytes, while the blocks before are computed.
        assert "0x10" in report["copies"], report
        assert not report["spills"], report
        small = report["capability"] in (80, 89)  # 8.6 runs code for 8.0
        assert report["shared_bytes"] <= (SHARED_SMALL if small else SHARED_LARGE), report
        # A step uses the same instructions for every batch size; only a prompt may use others.
        assert report["rows"] == 256 or report["products"] == ["mma.sync"], report
        assert report["products"], report
