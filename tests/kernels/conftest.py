"""Kernels need Triton, which is for Linux; how they are run is chosen in ``tests/conftest.py``."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]
