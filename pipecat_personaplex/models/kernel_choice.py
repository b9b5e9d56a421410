"""Which of our kernels run on a device: each is held against PyTorch once, before it is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from loguru import logger

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels.triton_support import have_triton


@lru_cache
def gemm_works(device: torch.device, format: Quantization | None) -> bool:
    """Whether ``kernels.gemm`` multiplies weights of this format; None is bfloat16."""

    def check() -> None:
        from pipecat_personaplex.kernels.gemm import check

        check(device, format)

    return _works(device, f"{format or 'bfloat16'} weights are multiplied", check)


@lru_cache
def frame_attention_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``kernels.frame_attention`` attends in this type."""

    def check() -> None:
        from pipecat_personaplex.kernels.frame_attention import check

        check(device, dtype)

    return _works(device, "the depth transformer attends", check)


def _works(device: torch.device, what: str, check: Callable[[], None]) -> bool:
    if device.type != "cuda":
        return False
    try:
        if not have_triton():
            raise RuntimeError("Triton is not installed")
        check()
    except Exception as error:  # a compiler's and a driver's errors have no common root
        logger.warning("{} without our kernel, more slowly: {}", what, one_line(error))
        return False
    return True


def one_line(error: Exception) -> str:
    """An error for the log."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
