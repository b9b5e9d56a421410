"""Whether an optional kernel works on this machine.

A kernel is used only if it compiles, runs and computes the right result here. ``probe`` runs such a
check once for each kernel and device, and logs one warning that says what is used instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import torch
from loguru import logger

from pipecat_personaplex.config import Quantization

_MAX_REASON = 300

_results: dict[tuple[str, torch.device], bool] = {}


@lru_cache(maxsize=1)
def have_triton() -> bool:
    """Whether Triton is installed and can run: on a CUDA device or in its interpreter."""
    if find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"


def require_triton() -> None:
    """Call this first in the check of a Triton kernel.

    Raises:
        RuntimeError: Triton is not installed, or has no device to run on.
    """
    if not have_triton():
        raise RuntimeError("Triton is not installed; pip install triton")


def probe(name: str, device: torch.device, check: Callable[[], None], *, fallback: str) -> bool:
    """Whether ``check`` passes; runs it once for each name and device.

    Args:
        name: The kernel and everything that its compilation depends on, such as shapes and types.
        device: The device that the check runs on.
        check: Runs the kernel and compares its result; raises any exception if the kernel cannot
            be used.
        fallback: What happens without the kernel, for the log.
    """
    key = name, device
    if key not in _results:
        try:
            check()
            _results[key] = True
        except Exception as error:  # compilers and drivers raise errors of many types
            _results[key] = False
            logger.warning(
                "{} is not available on {}: {}; {}", name, device, _one_line(error), fallback
            )
    return _results[key]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MAX_REASON]}"


def ring_attention_works(
    device: torch.device,
    heads: int,
    window: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
) -> bool:
    """Whether ``kernels.ring_attention`` works for such rings; compiles all that a step needs.

    Args:
        device: The device to check.
        heads: Attention heads.
        window: Positions a ring stores.
        head_dim: Features a head.
        dtype: Type of queries and of new keys and values.
        kv_dtype: Type of the stored keys and values.
    """

    def check() -> None:
        require_triton()
        from pipecat_personaplex.kernels.ring_attention_check import check

        check(heads, window, head_dim, dtype, kv_dtype, device)

    return probe(
        f"the ring attention kernel ({heads} heads of {head_dim}, window {window}, "
        f"{_name(dtype)} with keys and values in {_name(kv_dtype)})",
        device,
        check,
        fallback="PyTorch attends to whole rings under a mask, which is slower",
    )


def gemm_works(device: torch.device, format: Quantization | None) -> bool:
    """Whether ``kernels.gemm`` multiplies weights of this format; None is bfloat16."""
    if device.type != "cuda":
        return False

    def check() -> None:
        require_triton()
        from pipecat_personaplex.kernels.gemm import check

        check(device, format)

    return probe(
        f"the GEMM kernel for {format or 'bfloat16'} weights",
        device,
        check,
        fallback=(
            "PyTorch multiplies them, which is slower"
            if format is None
            else "weights are expanded to bfloat16 for each product, which is slower"
        ),
    )


def cpu_gemm_works(format: Quantization | None) -> bool:
    """Whether ``kernels.cpu_linear`` multiplies weights of this format; None is bfloat16."""
    if format == "fp8":
        return False

    def check() -> None:
        from pipecat_personaplex.kernels.cpu_linear import check

        check(format)

    return probe(
        f"the CPU kernel for {format or 'bfloat16'} weights",
        torch.device("cpu"),
        check,
        fallback="PyTorch multiplies them, which is slower",
    )


def cpu_attention_works(head_dim: int, kv_dtype: torch.dtype) -> bool:
    """Whether ``kernels.cpu_attention`` attends to rings of this head size and type."""

    def check() -> None:
        from pipecat_personaplex.kernels.cpu_attention import check

        check(head_dim, kv_dtype)

    return probe(
        f"the CPU kernel for attention (heads of {head_dim}, {_name(kv_dtype)})",
        torch.device("cpu"),
        check,
        fallback="PyTorch attends, which is slower",
    )


def depth_attention_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``kernels.depth_attention`` attends in this type."""
    if device.type != "cuda":
        return False

    def check() -> None:
        require_triton()
        from pipecat_personaplex.kernels.depth_attention import check

        check(device, dtype)

    return probe(
        f"the depth attention kernel for {_name(dtype)}",
        device,
        check,
        fallback="PyTorch attends in the depth transformer, which is slower",
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
