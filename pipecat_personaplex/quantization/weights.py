"""Low-bit storage of weights, in memory and in files.

| format | weight                                | scale                 | value of a code     |
|--------|---------------------------------------|-----------------------|---------------------|
| int8   | int8 [N, K]                           | bfloat16 [N]          | code * scale        |
| fp8    | float8_e4m3fn [N, K]                  | float32 [N]           | code * scale        |
| int4   | uint8 [N, P / 2], two codes per byte  | bfloat16 [N, P / 128] | (code - 8) * scale  |

N is the number of outputs, K of inputs, P is K rounded up to a multiple of 256. int8 and fp8 have
one scale per output, int4 has one per group of 128 inputs. Of each 256 int4 columns, the first 128
are the low halves of 128 bytes and the last 128 are the high halves: one coalesced load reads two
groups, and unpacking moves no data between threads.

``_FORMATS`` has one handler per format; everything else here is independent of the format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.quantization.fp8 import FP8, FP8_MAX

GROUP = 128
"""Consecutive columns that share one int4 scale."""
PAIR = 2 * GROUP
"""Columns of two int4 groups, which share their bytes."""
INT4_ZERO = 8
"""The int4 code of a weight of zero."""

_INT8_MAX = 127
# Lower bound of a row's or group's largest magnitude, so that all-zero rows get a valid scale.
_TINY = 1e-12
# Rows quantised at once. On a CPU the float copy of a block stays in the cache; on a GPU larger
# blocks need fewer launches.
_CPU_ROWS, _CUDA_ROWS = 64, 1024


class LowBit(NamedTuple):
    """One low-bit weight of N outputs and K inputs.

    Attributes:
        format: The storage format.
        columns: K.
        weight: Codes, as in the module's table.
        scale: Scales, as in the module's table.
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
    """The tensors that store a weight [rows, columns]."""
    return _FORMATS[format].storage(rows, columns)


def empty(format: Quantization, rows: int, columns: int, device: torch.device) -> LowBit:
    """Allocate an uninitialised weight [rows, columns]."""
    stored = storage(format, rows, columns)
    return LowBit(
        format,
        columns,
        torch.empty(stored.weight, dtype=stored.weight_dtype, device=device),
        torch.empty(stored.scale, dtype=stored.scale_dtype, device=device),
    )


def quantize(weight: Tensor, format: Quantization) -> LowBit:
    """Quantise a floating-point weight [N, K] on its own device."""
    low = empty(format, weight.shape[0], weight.shape[1], weight.device)
    fill(low, 0, weight)
    return low


def fill(low: LowBit, first: int, part: Tensor) -> None:
    """Quantise rows [R, K] from any device into ``low``, starting at its row ``first``.

    Each row is quantised on its own, so the result does not depend on the device or on how the
    rows are divided into calls.
    """
    device = low.weight.device
    block = _CPU_ROWS if device.type == "cpu" else _CUDA_ROWS
    for start in range(0, part.shape[0], block):
        rows = part[start : start + block].to(device).float()
        into = slice(first + start, first + start + rows.shape[0])
        low.weight[into], low.scale[into] = _FORMATS[low.format].quantize(rows)


def dequantize(low: LowBit, rows: slice = slice(None)) -> Tensor:
    """The values of some rows, float32 [R, K]."""
    handler = _FORMATS[low.format]
    return handler.dequantize(low.weight[rows], low.scale[rows].float())[:, : low.columns]


def int4_codes(weight: Tensor) -> Tensor:
    """Unpack int4 codes: uint8 [R, P / 2] -> uint8 [R, P], values 0..15."""
    pairs = weight.view(weight.shape[0], -1, 1, GROUP)
    return torch.cat((pairs & 15, pairs >> 4), dim=2).flatten(1)


def _int8_storage(rows: int, columns: int) -> Storage:
    return Storage((rows, columns), torch.int8, (rows,), torch.bfloat16)


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = (rows.abs().amax(dim=1).clamp(min=_TINY) / _INT8_MAX).bfloat16()
    # Divide by the scale after its rounding to bfloat16, so that this rounding adds no error.
    codes = (rows / scale[:, None].float()).round_().clamp_(-_INT8_MAX, _INT8_MAX)
    return codes.to(torch.int8), scale


def _fp8_storage(rows: int, columns: int) -> Storage:
    return Storage((rows, columns), FP8, (rows,), torch.float32)


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    scale = rows.abs().amax(dim=1).clamp(min=_TINY) / FP8_MAX
    codes = (rows / scale[:, None]).clamp_(-FP8_MAX, FP8_MAX)
    return codes.to(FP8), scale


def _from_row_scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 and fp8: [R, K], [R] -> float32 [R, K]."""
    return weight.float() * scale[:, None]


def _int4_storage(rows: int, columns: int) -> Storage:
    padded = -(-columns // PAIR) * PAIR
    return Storage((rows, padded // 2), torch.uint8, (rows, padded // GROUP), torch.bfloat16)


def _to_int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(rows, (0, -rows.shape[1] % PAIR))
    groups = padded.view(rows.shape[0], -1, GROUP)  # [R, P / 128, 128]
    high, low = groups.amax(dim=2), groups.amin(dim=2)
    # The number of largest magnitude maps to -8 whatever its sign, so all sixteen codes are used.
    extreme = torch.where(high > -low, high, low)
    extreme = torch.where(extreme.abs() < _TINY, _TINY, extreme)
    scale = (extreme / -INT4_ZERO).bfloat16()
    codes = (groups / scale[:, :, None].float()).round_().clamp_(-INT4_ZERO, INT4_ZERO - 1)
    pairs = codes.add_(INT4_ZERO).to(torch.uint8).view(rows.shape[0], -1, 2, GROUP)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1), scale


def _from_int4(weight: Tensor, scale: Tensor) -> Tensor:
    """[R, P / 2], [R, P / 128] -> float32 [R, P]."""
    codes = int4_codes(weight).float() - INT4_ZERO
    groups = codes.view(codes.shape[0], -1, GROUP) * scale[:, :, None]
    return groups.flatten(1)


class _Format(NamedTuple):
    """The handler of one storage format.

    Attributes:
        storage: (N, K) -> shapes and types of the two tensors.
        quantize: float32 [R, K] -> codes and scales of R rows.
        dequantize: Codes and float32 scales of R rows -> float32 [R, K or P].
    """

    storage: Callable[[int, int], Storage]
    quantize: Callable[[Tensor], tuple[Tensor, Tensor]]
    dequantize: Callable[[Tensor, Tensor], Tensor]


_FORMATS: dict[Quantization, _Format] = {
    "int8": _Format(_int8_storage, _to_int8, _from_row_scaled),
    "fp8": _Format(_fp8_storage, _to_fp8, _from_row_scaled),
    "int4": _Format(_int4_storage, _to_int4, _from_int4),
}
