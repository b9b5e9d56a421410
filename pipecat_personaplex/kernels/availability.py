"""Whether Triton kernels can run here."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from loguru import logger

from pipecat_personaplex.config import Quantization


@lru_cache(maxsize=1)
def have_triton() -> bool:
    """Whether Triton is installed and has something to run on: a CUDA device or its interpreter."""
    if find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache
def _kernels_run(
    device: torch.device,
    heads: int,
    window: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> bool:
    """Whether the kernels compile here and compute what they should; compiles them."""
    if not have_triton():
        _warn_without_triton()
        return False
    from pipecat_personaplex.kernels.ring_attention_check import check

    try:
        check(heads, window, head_dim, dtype, kv_dtype, device)
    except Exception as error:  # whatever a compiler or a driver may raise
        logger.warning(
            "no attention kernel on {} for {} heads of {} in {}: {}: {}; PyTorch's attention "
            "over whole windows takes its place",
            device,
            heads,
            head_dim,
            kv_dtype,
            type(error).__name__,
            error,
        )
        return False
    return True


@lru_cache(maxsize=1)
def _warn_without_triton() -> None:
    logger.warning(
        "Triton is not installed: PyTorch's attention over whole windows takes the place of the "
        "attention kernel; pip install triton"
    )


@lru_cache
def gemm_works(device: torch.device, format: Quantization | None) -> bool:
    """Whether ``kernels.gemm`` multiplies weights of this format; None is bfloat16."""

    def check() -> None:
        from pipecat_personaplex.kernels.gemm import check

        check(device, format)

    return _works(device, f"{format or 'bfloat16'} weights are multiplied", check)


@lru_cache
def depth_attention_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``kernels.frame_attention`` attends in this type."""

    def check() -> None:
        from pipecat_personaplex.kernels.depth_attention import check

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
