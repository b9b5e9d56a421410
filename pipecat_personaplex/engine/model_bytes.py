"""Sizes in memory of a model's weights, states and workspace, from its architecture."""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import nn

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels.availability import cpu_gemm_works
from pipecat_personaplex.kernels.cpu_linear import packed_bytes
from pipecat_personaplex.models.config import LMConfig, MimiConfig
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.quantization.weights import storage

CUDA_WORKSPACE_BYTES = 1 << 30
CUDA_WORKSPACE_BYTES_PER_SLOT = 8 << 20
"""Allowances, not measurements, for captured graphs, the libraries' workspaces and activations."""

# Bytes of the float32 scale that fp8 has per position and head, for keys and for values.
_KV_SCALE_BYTES = 4
_FLOAT_BYTES = {"float32": 4, "bfloat16": 2}


def kv_bytes(config: LMConfig, window: int, kv_dtype: str) -> int:
    """Size of one slot's keys and values in the temporal transformer, all layers, in bytes."""
    head_dim = config.dim // config.num_heads
    head = head_dim + _KV_SCALE_BYTES if kv_dtype == "fp8" else head_dim * _FLOAT_BYTES[kv_dtype]
    return 2 * config.num_layers * window * config.num_heads * head


def workspace_bytes(
    config: LMConfig, window: int, device: torch.device, dtype: torch.dtype
) -> tuple[int, int]:
    """Temporary memory on CUDA in bytes: (once, per slot); none on a CPU.

    Once: the allowance, and the keys and values of the prompt that is being computed. Per slot:
    the allowance, and, without Triton, one layer's ring, which PyTorch's attention gathers.
    """
    if device.type != "cuda":
        return 0, 0
    prompt = kv_bytes(config, window, str(dtype).removeprefix("torch."))
    gathered = 0 if find_spec("triton") else prompt // config.num_layers
    return CUDA_WORKSPACE_BYTES + prompt, CUDA_WORKSPACE_BYTES_PER_SLOT + gathered


def codec_slot_bytes(mimi: Mimi, config: MimiConfig) -> int:
    """Codec state of one slot in float32: convolutions, and encoder and decoder rings, in bytes."""
    # Encoder and decoder, keys and values.
    rings = 2 * 2 * config.num_layers * config.window * config.dimension
    return mimi.new_state(1).nbytes + rings * _FLOAT_BYTES["float32"]


def weight_bytes(
    model: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization | None,
) -> int:
    """Size of a model's parameters and buffers after loading, in bytes.

    Args:
        model: The model, on the meta device.
        device: Device it will be loaded to.
        dtype: Type of its floating-point weights.
        quantization: Format of its Linear layers; None for floating point.
    """
    total = sum(buffer.nbytes for buffer in model.buffers())
    for owner in model.modules():
        for parameter in owner.parameters(recurse=False):
            if isinstance(owner, Linear) and quantization is not None:
                total += _linear_bytes(owner, device, dtype, quantization)
            else:
                total += parameter.numel() * dtype.itemsize
    return total


def _linear_bytes(
    linear: Linear, device: torch.device, dtype: torch.dtype, quantization: Quantization
) -> int:
    """Size of one Linear of a quantised model; ``models.linear`` decides its format."""
    rows, columns = linear.weight.shape
    format = linear.format(quantization)
    if format is None:
        # oneDNN packs the weight as bfloat16 where the CPU supports it.
        if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            dtype = torch.bfloat16
        return rows * columns * dtype.itemsize
    stored = storage(format, rows, columns)
    if device.type == "cpu" and cpu_gemm_works(format):
        return packed_bytes(format, rows, columns)
    scales = math.prod(stored.scale) * stored.scale_dtype.itemsize
    if device.type == "cpu" and format == "int4":
        scales *= 2  # PyTorch's CPU layout stores a zero point with each scale
    return math.prod(stored.weight) * stored.weight_dtype.itemsize + scales
