"""Description of the machine that a report was measured on."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from pipecat_personaplex import __version__

_PACKAGE = Path(__file__).resolve().parents[1]
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_CPUINFO = Path("/proc/cpuinfo")
# Matches the version in: NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue ...
_DRIVER = re.compile(r"\b\d{3,}\.\d+(\.\d+)?\b")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return device, driver, versions and commit for a report; unknown values are None."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "processor": _processor(),
        "driver": _driver() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _triton(),
        "version": __version__,
        "commit": _commit(),
    }


def used_bytes(device: torch.device) -> int:
    """Return the memory in use: on the GPU, or by this process (anonymous, no mapped files)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        logger.debug("this system has no /proc: used memory is reported as 0")
        return 0
    line = next(line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def _processor() -> str | None:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def _driver() -> str | None:
    output = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if output:
        return output.splitlines()[0].strip()
    try:
        found = _DRIVER.search(_DRIVER_FILE.read_text())
    except OSError:
        return None
    return found[0] if found else None


def _triton() -> str | None:
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _commit() -> str | None:
    """Return the commit of the checkout that the package runs from; None if it is installed."""
    root = _output("git", "-C", str(_PACKAGE), "rev-parse", "--show-toplevel")
    if root is None or Path(root.strip()).resolve() != _PACKAGE.parent:
        return None
    commit = _output("git", "-C", str(_PACKAGE), "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    changed = _output("git", "-C", str(_PACKAGE), "status", "--porcelain", "--", str(_PACKAGE))
    return commit.strip() + (" with changes" if changed else "")


def _output(*command: str) -> str | None:
    """Return the output of a command; None if it does not exist or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None
