"""Free memory of a device for this process, within the limits of its container."""

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device for this process, in bytes; None if the system does not report it.

    On a CPU this is the least of what the machine has and what the process's control groups (of a
    container, a pod or a systemd unit) still allow.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Blocks that torch has reserved and not allocated are free for this process only.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [bytes for bytes in (_machine_bytes(), _cgroup_bytes()) if bytes is not None]
    return min(known, default=None)


def _machine_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _cgroup_bytes() -> int | None:
    """What the control groups of this process still allow; None without a limit."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return None
    left: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            left += _left(_CGROUPS, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1
            root = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left += _left(root, path, *names)
    return min(left, default=None)


def _left(root: Path, path: str, limit: str, usage: str, reclaimable: str) -> list[int]:
    """Bytes that a group and each group around it leave; groups without a limit are left out.

    Inside a container the path may be that of the host, of which only the root is mounted.
    """
    group = root / path.lstrip("/")
    groups = [group, *group.parents] if ".." not in group.parts else [root]
    left = []
    for folder in groups:
        if folder.is_relative_to(root):
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                # The page cache counts as used, and is given back when memory is short.
                left.append(max(0, most - max(0, used - _stat(folder, reclaimable))))
    return left


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _stat(folder: Path, name: str) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
