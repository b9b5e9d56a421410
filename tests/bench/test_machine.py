"""The description of the machine in a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipecat_personaplex.bench import machine


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23", "580.95.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.26  Release", "570.26"),
        ("no number here", None),
    ],
)
def test_driver_version_from_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, driver: str | None
) -> None:
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(machine, "_DRIVER_FILE", tmp_path / "version")
    monkeypatch.setenv("PATH", str(tmp_path))  # Without nvidia-smi.
    assert machine._driver() == driver
    (tmp_path / "version").unlink()
    assert machine._driver() is None


def test_driver_version_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 555.42.02\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._driver() == "555.42.02"


def test_installed_package_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A repository that contains the environment is not the package's checkout."""
    monkeypatch.setattr(machine, "_PACKAGE", machine._PACKAGE / "engine")
    assert machine._commit() is None
    monkeypatch.setattr(machine, "_PACKAGE", tmp_path)
    assert machine._commit() is None
