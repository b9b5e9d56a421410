"""Collect kernel tests only if Triton, which is for Linux, is installed.

``tests/conftest.py`` chooses whether they run in its interpreter.
"""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]
