"""Whether Triton kernels can run here."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.util import find_spec

import torch


@lru_cache(maxsize=1)
def have_triton() -> bool:
    """Whether Triton is installed and has something to run on: a CUDA device or its interpreter."""
    if find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
