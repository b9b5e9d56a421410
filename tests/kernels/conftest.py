"""Kernels run in Triton's interpreter, which has to be asked for before Triton is imported."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
