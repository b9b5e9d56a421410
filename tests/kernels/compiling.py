"""Compile kernels for other GPUs in a process without Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def compile_reports(module: str) -> list[dict[str, Any]]:
    """Run a module of this package that compiles kernels; the JSON objects that it prints.

    Triton's own cache, whose keys include the source, serves kernels that have not changed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(_ROOT)
    run = subprocess.run(
        [sys.executable, "-m", f"tests.kernels.{module}"],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]
