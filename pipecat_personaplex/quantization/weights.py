"""Low-bit weights as they are kept in memory and in files, and the way to them and back.

| format | weight                                   | scale              |
|--------|------------------------------------------|--------------------|
| int8   | int8 [N, K]                              | bfloat16 [N]       |
| fp8    | float8_e4m3fn [N, K]                     | float32 [N]        |
| int4   | uint8 [N, P / 2], P = K up to a multiple of 256 | bfloat16 [N, P / 128] |

A weight is its number times its scale. Four-bit numbers are kept plus 8; of each 256 columns the
first 128 stand in the low halves of 128 bytes and the others in the high halves, so that one
coalesced load brings two groups and taking them apart moves nothing between threads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.config import Quantization

GROUP = 128
"""Columns that share a scale of the int4 format."""
PAIR = 2 * GROUP
INT4_ZERO = 8
"""The code of a weight of zero."""

_INT8_MAX = 127
_FP8_MAX = 448.0
_TINY = 1e-12
# A block of rows at a time: no float copy of the whole weight, and a CPU's cache is kept. A GPU
# wants fewer launches.
_CPU_BLOCK, _CUDA_BLOCK = 64, 1024


class LowBit(NamedTuple):
    """One low-bit weight of N outputs and K inputs.

    Attributes:
        format: Its kind.
        columns: K.
        weight: As in the table above.
        scale: As in the table above.
    """

    format: Quantization
    columns: int
    weight: Tensor
    scale: Tensor


class Storage(NamedTuple):
    """Shapes and types of a low-bit weight's two tensors."""

    weight: tuple[int, ...]
    weight_dtype: torch.dtype
    scale: tuple[int, ...]
    scale_dtype: torch.dtype


def storage(format: Quantization, rows: int, columns: int) -> Storage:
    """What a weight [rows, columns] takes."""
    if format == "int8":
        return Storage((rows, columns), torch.int8, (rows,), torch.bfloat16)
    if format == "fp8":
        return Storage((rows, columns), torch.float8_e4m3fn, (rows,), torch.float32)
    padded = -(-columns // PAIR) * PAIR
    return Storage((rows, padded // 2), torch.uint8, (rows, padded // GROUP), torch.bfloat16)


def empty(format: Quantization, rows: int, columns: int, device: torch.device) -> LowBit:
    """Room for a weight [rows, columns]."""
    kept = storage(format, rows, columns)
    return LowBit(
        format,
        columns,
        torch.empty(kept.weight, dtype=kept.weight_dtype, device=device),
        torch.empty(kept.scale, dtype=kept.scale_dtype, device=device),
    )


def quantize(weight: Tensor, format: Quantization) -> LowBit:
    """Turn a floating point weight [N, K] into a low-bit one on the same device."""
    low = empty(format, weight.shape[0], weight.shape[1], weight.device)
    fill(low, 0, weight)
    return low


def fill(low: LowBit, first: int, part: Tensor) -> None:
    """Quantise floating point rows [R, K], from whatever device, into ``low`` from row ``first``.

    The result depends on the rows alone: not on the device, nor on how they were divided.
    """
    device = low.weight.device
    step = _CPU_BLOCK if device.type == "cpu" else _CUDA_BLOCK
    for start in range(0, part.shape[0], step):
        rows = part[start : start + step].to(device).float()
        into = slice(first + start, first + start + rows.shape[0])
        low.weight[into], low.scale[into] = _QUANTIZERS[low.format](rows)


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = (rows.abs().amax(dim=1).clamp(min=_TINY) / _INT8_MAX).bfloat16()
    # Divided by the scale as it is kept: rounding it to bfloat16 then costs nothing.
    codes = (rows / scale[:, None].float()).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    return codes.to(torch.int8), scale


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(dim=1).clamp(min=_TINY) / _FP8_MAX
    codes = (rows / scale[:, None]).clamp_(-_FP8_MAX, _FP8_MAX)
    return codes.to(torch.float8_e4m3fn), scale


def _to_int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(rows, (0, -rows.shape[1] % PAIR))
    groups = padded.view(rows.shape[0], -1, GROUP)
    high, low = groups.amax(dim=2), groups.amin(dim=2)
    # The extreme, with its sign, becomes -8: of the sixteen numbers none goes to waste.
    extreme = torch.where(high > -low, high, low)
    extreme = torch.where(extreme.abs() < _TINY, _TINY, extreme)
    scale = (extreme / -INT4_ZERO).bfloat16()
    codes = (groups / scale[:, :, None].float()).round_().clamp_(-INT4_ZERO, INT4_ZERO - 1)
    pairs = codes.add_(INT4_ZERO).to(torch.uint8).view(rows.shape[0], -1, 2, GROUP)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1), scale


_QUANTIZERS = {"int8": _to_int8, "fp8": _to_fp8, "int4": _to_int4}


def int4_codes(weight: Tensor) -> Tensor:
    """Take packed numbers apart: uint8 [R, P / 2] -> uint8 [R, P], 0..15."""
    pairs = weight.view(weight.shape[0], -1, 1, GROUP)
    return torch.cat((pairs & 15, pairs >> 4), dim=2).flatten(1)


def dequantize(low: LowBit, rows: slice = slice(None)) -> Tensor:
    """The weights that some rows stand for, float32 [R, K]."""
    weight, scale = low.weight[rows], low.scale[rows].float()
    if low.format != "int4":
        return weight.float() * scale[:, None]
    codes = int4_codes(weight).float() - INT4_ZERO
    groups = codes.view(codes.shape[0], -1, GROUP) * scale[:, :, None]
    return groups.flatten(1)[:, : low.columns]
