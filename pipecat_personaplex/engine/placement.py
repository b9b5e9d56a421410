"""Where a model runs and in which precision, from what the user asked for."""

from __future__ import annotations

import torch

from pipecat_personaplex.engine.weights import Target
from pipecat_personaplex.errors import ConfigError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_target(device: str, dtype: str, quantization: str | None) -> Target:
    """Resolve ``"auto"``: CUDA where there is one, bfloat16 on CUDA, float32 on a CPU.

    Raises:
        ConfigError: There is no such device, or it does not run such weights.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise ConfigError(
            f"device {device} is not there: torch sees {count or 'no'} CUDA devices; use cpu"
        )
    if quantization is not None and chosen.type != "cpu":
        raise ConfigError(f"quantization {quantization} runs on a CPU; leave it out for {device}")
    if dtype == "auto":
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    return Target(chosen, _DTYPES[dtype], quantization)


def prepare_device(device: torch.device) -> None:
    """Make a CUDA device this thread's own, and its float32 products exact.

    Kernels are launched on the thread's device, whatever their tensors'. With TF32 the codec
    would choose other codes than the reference; bfloat16 products are not concerned.
    """
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("highest")
