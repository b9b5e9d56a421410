"""Products with int8, int4 and bfloat16 weights on a CPU, by the C++ kernels in ``kernels/cpu``.

For low-bit weights, rows are quantised and multiplied in integers: for int8 weights to 16 bits with
a scale for each row, for int4 weights to 8 bits with a scale for each group of 128 inputs. Both add
little to the error of the weights. A row does not depend on the other rows. Norm, gate and residual
are applied in the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels.cpu_library import cpu_library
from pipecat_personaplex.quantization.weights import LowBit, dequantize, quantize, storage

TILE = 16
"""Outputs that the kernels compute together."""
BFLOAT16_MULTIPLE = 32
"""Inputs of a bfloat16 weight must be a multiple of this."""
_BLOCK_INPUTS = 64
# Largest error of a product in the check, as a part of the largest result.
_MOST_ERROR = 0.05
_BFLOAT16_BYTES, _FLOAT32_BYTES = 2, 4


class CpuWeight(NamedTuple):
    """A weight [N, K] in the layout of the kernels; Np is N rounded up to a multiple of 16.

    Attributes:
        format: int8 or int4.
        rows: N.
        columns: K.
        weight: uint8 [Np, bytes of a row], as ``kernels/cpu/linear.h`` describes it.
        scale: int8: float32 [Np]. int4: bfloat16 [Np / 16, P / 128, 16].
        sums: int8: 128 times the sum of each output's codes, int32 [Np]. int4: empty.
    """

    format: Quantization
    rows: int
    columns: int
    weight: Tensor
    scale: Tensor
    sums: Tensor

    @property
    def blocks(self) -> int:
        """Blocks of 64 inputs."""
        return self.weight.shape[1] * (2 if self.format == "int4" else 1) // _BLOCK_INPUTS

    def multiply(
        self,
        x: Tensor,
        *,
        alpha: Tensor | None = None,
        eps: float = 0.0,
        gate: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Norm, product, gate and residual in one call.

        Args:
            x: float32 [..., K].
            alpha: Weights of an RMS norm of ``x``, float32 [K]; None: no norm.
            eps: Added to the mean square in the norm.
            gate: Whether the outputs are [gate; up], of which ``silu(gate) * up`` is returned.
            residual: Added to the result, float32.

        Returns:
            float32 [..., N], or with ``gate`` [..., N / 2].
        """
        if gate and self.rows % (2 * TILE):  # gate and up do not start at tiles
            gates, up = self.multiply(x, alpha=alpha, eps=eps).chunk(2, dim=-1)
            y = F.silu(gates).mul_(up)
            return y if residual is None else residual + y
        width = self.rows // 2 if gate else self.rows
        x = x.contiguous()
        y = x.new_empty((*x.shape[:-1], width))
        if residual is not None:
            residual = residual.contiguous()
        cpu_library().personaplex_linear(
            self.format == "int4",
            self.weight.data_ptr(),
            self.scale.data_ptr(),
            self.sums.data_ptr(),
            self.weight.shape[0] // TILE,
            self.blocks,
            x.data_ptr(),
            None if alpha is None else alpha.data_ptr(),
            eps,
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            x.numel() // self.columns,
            self.columns,
            width,
            gate,
            torch.get_num_threads(),
        )
        return y


def multiply_bfloat16(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply a few rows by a bfloat16 weight, in float32.

    Args:
        x: float32 [..., K]; K is a multiple of ``BFLOAT16_MULTIPLE``.
        weight: bfloat16 [N, K].

    Returns:
        float32 [..., N].
    """
    x = x.contiguous()
    outputs, inputs = weight.shape
    y = x.new_empty((*x.shape[:-1], outputs))
    rows = x.numel() // inputs
    cpu_library().personaplex_bfloat16(
        weight.data_ptr(),
        x.data_ptr(),
        y.data_ptr(),
        rows,
        inputs,
        outputs,
        torch.get_num_threads(),
    )
    return y


def on_huge_pages(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in pages of 2 MB, where the system grants them: faster to read."""
    tensor = torch.empty(shape, dtype=dtype)
    cpu_library().personaplex_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def packed_bytes(format: Quantization, rows: int, columns: int) -> int:
    """Bytes of a ``CpuWeight`` [rows, columns], scales and sums included."""
    stored = storage(format, rows, columns)
    padded, row_bytes = _padded(format, *stored.weight)
    scale = stored.scale[1] * _BFLOAT16_BYTES if format == "int4" else 2 * _FLOAT32_BYTES
    return padded * (row_bytes + scale)


def _padded(format: Quantization, rows: int, row_bytes: int) -> tuple[int, int]:
    """Shape of ``CpuWeight.weight`` for a stored weight of so many rows and bytes a row."""
    if format == "int8":
        row_bytes = -(-row_bytes // _BLOCK_INPUTS) * _BLOCK_INPUTS
    return -(-rows // TILE) * TILE, row_bytes


def pack(low: LowBit) -> CpuWeight:
    """Copy an int8 or int4 weight to the layout of the kernels."""
    stored = low.weight.contiguous()
    rows, row_bytes = _padded(low.format, *stored.shape)
    missing = rows - stored.shape[0]
    weight = on_huge_pages((rows, row_bytes), torch.uint8)
    if low.format == "int8":
        scale = F.pad(low.scale.float(), (0, missing))
        sums = torch.empty(rows, dtype=torch.int32)
    else:
        groups = F.pad(low.scale, (0, 0, 0, missing)).view(rows // TILE, TILE, -1)
        scale = groups.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        sums = torch.empty(0, dtype=torch.int32)
    cpu_library().personaplex_pack(
        stored.data_ptr(),
        weight.data_ptr(),
        sums.data_ptr() if sums.numel() else None,
        stored.shape[0],
        stored.shape[1],
        row_bytes,
        torch.get_num_threads(),
    )
    return CpuWeight(low.format, low.weight.shape[0], low.columns, weight, scale, sums)


def check(format: Quantization | None) -> None:
    """Compare the kernels with PyTorch, at each number of rows that has a kernel of its own.

    Args:
        format: int8 or int4; None: bfloat16.

    Raises:
        RuntimeError: The kernels cannot be had here, or a product is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(96, 320, generator=generator)
    x = torch.randn(37, 320, generator=generator)
    if format is None:
        narrow = floats.bfloat16()
        _require_close(multiply_bfloat16(x[:3], narrow), x[:3] @ narrow.float().t())
        return
    low = quantize(floats, format)
    weight, expanded = pack(low), dequantize(low)
    alpha = torch.rand(320, generator=generator)
    residual = torch.randn(37, 48, generator=generator)
    gates, up = (F.rms_norm(x, (320,), alpha, 1e-8) @ expanded.t()).chunk(2, dim=-1)
    expected = F.silu(gates) * up + residual
    for rows in (1, 2, 3, 4, 16, 37):
        y = weight.multiply(x[:rows], alpha=alpha, eps=1e-8, gate=True, residual=residual[:rows])
        _require_close(y, expected[:rows])


def _require_close(y: Tensor, expected: Tensor) -> None:
    # Written so that a NaN fails.
    if not (y - expected).abs().max() < _MOST_ERROR * expected.abs().max():
        raise RuntimeError(f"the product of {len(y)} rows is wrong")
