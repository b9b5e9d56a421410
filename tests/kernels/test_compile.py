"""The attention kernels compile for GPUs that are not there, and as fast code."""

from __future__ import annotations

from pathlib import Path

from tests.kernels.compiling import compile_reports


def test_kernels_compile_from_ampere_to_blackwell(tmp_path: Path) -> None:
    reports = compile_reports("compile_for_gpus", tmp_path)
    assert {report["capability"] for report in reports} == {80, 89, 90, 100}
    for report in reports:
        # Keys and values come 16 bytes a thread, behind the one block that is being computed.
        assert "0x10" in report["copies"], report
        assert report["layout_changes_in_loop"] == 0, report
        # Three programs on the smallest of multiprocessors, that of an RTX 4090.
        assert 3 * (report["shared_bytes"] + 1024) <= 100 << 10, report
