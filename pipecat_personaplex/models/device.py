"""Resolve the requested device, types and threads, and prepare a CUDA device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pipecat_personaplex.config import Quantization, QuantizationChoice
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.quantization.fp8 import FP8, FP8_CAPABILITY

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Below this many weights, synchronising a second thread costs more than it saves.
_ONE_THREAD_WEIGHTS = 20_000_000


def resolve_target(device: str, dtype: str, quantization: QuantizationChoice | None) -> Target:
    """Resolve ``"auto"``: CUDA if available, else the CPU; bfloat16 on CUDA, float32 on a CPU.

    Quantization ``"auto"`` becomes None: ``engine.weight_format`` resolves it, as it depends on the
    checkpoint.

    Raises:
        ConfigError: The device does not exist or does not support ``quantization``.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        there = f"{count} CUDA devices, cuda:0 to cuda:{count - 1}" if count else "no CUDA device"
        other = "one of these or cpu" if count else "cpu"
        raise ConfigError(f"device {device} does not exist: torch sees {there}; use {other}")
    format = None if quantization == "auto" else quantization
    require_runnable(format, chosen)
    if dtype == "auto":
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    return Target(chosen, _DTYPES[dtype], format)


def require_runnable(quantization: Quantization | None, device: torch.device) -> None:
    """Check that the device supports a weight format.

    Raises:
        ConfigError: The format is fp8 and the GPU has no fp8 instructions.
    """
    if quantization == "fp8":
        _require_fp8(device, "quantization fp8", "take int8, which is as small")


def resolve_kv_dtype(
    kv_dtype: str,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
) -> torch.dtype:
    """Resolve the type of stored keys and values.

    ``"auto"`` is the model's ``dtype``; but bfloat16, which is read in half the time, with low-bit
    weights on a CPU that multiplies it.

    Args:
        kv_dtype: As in ``EngineConfig``.
        dtype: Type of the language model's activations.
        device: Device of the model.
        quantization: Format of its weights, stored or requested.

    Raises:
        ConfigError: The type is fp8 and the GPU has no fp8 instructions.
    """
    if kv_dtype == "auto":
        low_bit_cpu = device.type == "cpu" and quantization is not None
        narrow = low_bit_cpu and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if narrow else dtype
    if kv_dtype != "fp8":
        return _DTYPES[kv_dtype]
    _require_fp8(device, "kv_dtype fp8", "take bfloat16, with a smaller context where it is short")
    return FP8


def _require_fp8(device: torch.device, what: str, instead: str) -> None:
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < FP8_CAPABILITY:
        has, needed = (".".join(map(str, numbers)) for numbers in (capability, FP8_CAPABILITY))
        raise ConfigError(
            f"{what} needs a GPU of compute capability {needed} or more and {device} has {has}; "
            f"{instead}"
        )


def cpu_threads(requested: int, lm: nn.Module) -> int:
    """Number of threads for a language model on a CPU.

    Args:
        requested: ``EngineConfig.cpu_threads``; 0 chooses by the model's size.
        lm: The model, loaded.
    """
    weights = sum(tensor.numel() for tensor in (*lm.parameters(), *lm.buffers()))
    if requested == 0 and weights < _ONE_THREAD_WEIGHTS:
        return 1
    return requested or torch.get_num_threads()


def prepare_device(device: torch.device) -> None:
    """Select and configure a CUDA device for the calling thread; no effect on a CPU.

    Kernels are launched on the thread's current device, not on the device of their tensors. TF32 is
    disabled, because the codec would choose other codes than the reference; bfloat16 products are
    not affected. cuDNN attention, which PyTorch prefers on the newest GPUs, is disabled, because it
    plans each new prompt length for tens of milliseconds, which would delay every running session.
    """
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_cudnn_sdp(False)


class Target(NamedTuple):
    """Device and storage of a model's weights.

    Attributes:
        device: Device of all tensors.
        dtype: Type of floating-point weights.
        quantization: Format of low-bit weights; None: all weights are floating point.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: Quantization | None
