"""Where a model runs and in which precision, from what the user asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.quantization.kv import FP8

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FP8_CAPABILITY = (8, 9)
# Below this many, a second thread costs a step more in waiting than it takes off.
_ONE_THREAD_WEIGHTS = 20_000_000


def resolve_target(device: str, dtype: str, quantization: Quantization | None) -> Target:
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
    require_runnable(quantization, chosen)
    if dtype == "auto":
        dtype = "bfloat16" if chosen.type == "cuda" else "float32"
    return Target(chosen, _DTYPES[dtype], quantization)


def require_runnable(quantization: Quantization | None, device: torch.device) -> None:
    """Refuse weights that the device cannot multiply.

    Raises:
        ConfigError: They are fp8 and the GPU does not know such numbers.
    """
    if quantization == "fp8":
        _require_fp8(device, "quantization fp8", "take int8, which is as small")


def resolve_kv_dtype(kv_dtype: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Resolve ``"auto"``: the model's own dtype.

    Raises:
        ConfigError: The device does not know such numbers.
    """
    if kv_dtype == "auto":
        return dtype
    if kv_dtype != "fp8":
        return _DTYPES[kv_dtype]
    _require_fp8(device, "kv_dtype fp8", "take bfloat16, with a smaller context where it is short")
    return FP8


def _require_fp8(device: torch.device, what: str, instead: str) -> None:
    if device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        has, wanted = (".".join(map(str, numbers)) for numbers in (capability, _FP8_CAPABILITY))
        raise ConfigError(
            f"{what} needs a GPU of compute capability {wanted} or more and {device} has {has}; "
            f"{instead}"
        )


def cpu_threads(asked: int, lm: nn.Module) -> int:
    """Threads for a language model on a CPU.

    Args:
        asked: As ``EngineConfig.cpu_threads``.
        lm: With its weights.
    """
    weights = sum(tensor.numel() for tensor in (*lm.parameters(), *lm.buffers()))
    if asked == 0 and weights < _ONE_THREAD_WEIGHTS:
        return 1
    return asked or torch.get_num_threads()


def prepare_device(device: torch.device) -> None:
    """Make a CUDA device this thread's own, its float32 products exact, its prompts plain.

    Kernels are launched on the thread's device, whatever their tensors'. With TF32 the codec
    would choose other codes than the reference; bfloat16 products are not concerned. And cuDNN,
    which PyTorch prefers on the newest cards, plans its attention anew for each length of a
    prompt, for tens of milliseconds in which no call goes on.
    """
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.enable_cudnn_sdp(False)


class Target(NamedTuple):
    """Where and how a model's weights are kept.

    Attributes:
        device: Where.
        dtype: Of the parameters.
        quantization: As in ``EngineConfig``.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: Quantization | None
