"""Free memory of a process whose container has a limit, in control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipecat_personaplex.engine import free_memory
from pipecat_personaplex.engine.free_memory import available_bytes

CPU = torch.device("cpu")
MIB = 1 << 20


class System:
    """The files of a machine with 16 GiB of free memory."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder = folder
        for name in ("meminfo", "cgroup", "groups"):
            constant = {"cgroup": "_OWN_CGROUPS", "groups": "_CGROUPS"}.get(name, "_MEMINFO")
            monkeypatch.setattr(free_memory, constant, folder / name)
        self.write("meminfo", f"MemAvailable: {16 << 20} kB\n")

    def write(self, name: str, text: object) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}")

    def version_2(self, group: str, most: object, used: int, cache: int = 0) -> None:
        self.write(f"groups/{group}/memory.max", f"{most}\n")
        self.write(f"groups/{group}/memory.current", f"{used}\n")
        self.write(f"groups/{group}/memory.stat", f"anon 1\ninactive_file {cache}\n")

    def version_1(self, group: str, most: int, used: int, cache: int = 0) -> None:
        folder = f"groups/memory/{group}"
        self.write(f"{folder}/memory.limit_in_bytes", most)
        self.write(f"{folder}/memory.usage_in_bytes", used)
        self.write(f"{folder}/memory.stat", f"inactive_file 7\ntotal_inactive_file {cache}\n")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    return System(tmp_path, monkeypatch)


def test_without_a_limit_the_machine_counts(system: System) -> None:
    assert available_bytes(CPU) == 16 << 30
    system.write("cgroup", "0::/\n")
    assert available_bytes(CPU) == 16 << 30
    system.version_2("", "max", 5 * MIB)
    assert available_bytes(CPU) == 16 << 30


def test_version_2_in_a_container(system: System) -> None:
    """The container sees its own group as the root. Page cache can be given back."""
    system.write("cgroup", "0::/\n")
    system.version_2("", 1000 * MIB, 300 * MIB, cache=100 * MIB)
    assert available_bytes(CPU) == 800 * MIB


def test_version_2_the_tightest_group_counts(system: System) -> None:
    system.write("cgroup", "0::/kubepods/pod7/engine\n")
    system.version_2("kubepods", 9000 * MIB, 0)
    system.version_2("kubepods/pod7", 700 * MIB, 200 * MIB)
    system.version_2("kubepods/pod7/engine", "max", 100 * MIB)
    assert available_bytes(CPU) == 500 * MIB


def test_version_1_in_a_container(system: System) -> None:
    """/proc names the group of the host; its own is mounted as the root."""
    system.write("cgroup", "12:cpu,cpuacct:/docker/f00\n5:memory:/docker/f00\n0::/docker/f00\n")
    system.version_1("", 600 * MIB, 250 * MIB, cache=50 * MIB)
    assert available_bytes(CPU) == 400 * MIB


def test_version_1_without_a_limit_has_a_huge_one(system: System) -> None:
    system.write("cgroup", "5:memory:/user.slice\n")
    system.version_1("user.slice", 9223372036854771712, 250 * MIB)
    assert available_bytes(CPU) == 16 << 30


def test_a_group_that_uses_more_than_it_may_leaves_nothing(system: System) -> None:
    system.write("cgroup", "0::/a\n")
    system.version_2("a", 100 * MIB, 120 * MIB)
    assert available_bytes(CPU) == 0


def test_a_group_outside_the_mount(system: System) -> None:
    system.write("cgroup", "0::/../../other\n")
    system.version_2("", 100 * MIB, 40 * MIB)
    assert available_bytes(CPU) == 60 * MIB
