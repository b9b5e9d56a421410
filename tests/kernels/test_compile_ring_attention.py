"""The attention kernels compile to fast code for GPUs that this machine lacks."""

from __future__ import annotations

from tests.kernels.compiling import compile_reports


def test_kernels_compile_from_ampere_to_blackwell() -> None:
    reports = compile_reports("compile_ring_attention")
    assert {report["capability"] for report in reports} == {80, 89, 90, 100}
    for report in reports:
        # Each thread loads keys and values in 16 bytes, while the block before is computed.
        assert "0x10" in report["copies"], report
        assert report["layout_changes_in_loop"] == 0, report
        # The smallest multiprocessor, that of an RTX 4090, holds three programs.
        assert 3 * (report["shared_bytes"] + 1024) <= 100 << 10, report
