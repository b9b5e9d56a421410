"""Shared parts of the ring kernels: the plan of a launch, loading, rotating and storing vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.quantization.fp8 import FP8_MAX
from pipecat_personaplex.quantization.kv import SMALLEST_AMAX

TARGET_PROGRAMS = 256
"""Programs for one session: about two for each multiprocessor of the largest GPUs. More programs
would add memory traffic with many sessions, which fill the GPU without splitting rings."""
BLOCK_POSITIONS = 32
"""Most positions that a program loads at once."""
BLOCK_BYTES = 8 << 10
"""Most bytes that a program loads at once. With three stages of such blocks, of keys and of values,
a multiprocessor still holds three programs."""

_FP8_MAX = tl.constexpr(FP8_MAX)
_SMALLEST_AMAX = tl.constexpr(SMALLEST_AMAX)
_INT_STEP = tl.constexpr(8388608.0)  # 2**23: from here on, float32 represents integers only


@triton.jit
def _quantize(x):  # type: ignore[no-untyped-def]
    """``quantization.kv.quantize`` of one vector, float32 [D].

    Returns e4m3 bits as uint8 [D], the numbers that they represent as float32 [D], and the scale.
    """
    # Compared as integers, a NaN is larger than any number. It makes the scale NaN and so is not
    # lost.
    amax = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    scale = tl.where(amax < _SMALLEST_AMAX, _SMALLEST_AMAX, amax) / _FP8_MAX
    y = tl.abs(x / scale)
    y = tl.where(y < _FP8_MAX, y, _FP8_MAX)
    # Round to nearest, ties to even, by hand: GPUs differ in whether they have a cast to e4m3 and
    # in how it treats subnormal numbers. Numbers of one exponent are 2**(exponent - 3) apart;
    # subnormal numbers are as far apart as the smallest normal ones.
    exponent = tl.maximum((y.to(tl.int32, bitcast=True) >> 23) - 127, -6)
    per_step = ((127 + 3 - exponent) << 23).to(tl.float32, bitcast=True)
    steps = (y * per_step + _INT_STEP) - _INT_STEP
    code = (exponent + 6) * 8 + steps.to(tl.int32)
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    number = steps / per_step
    return (code | sign).to(tl.uint8), tl.where(x < 0, -number, number), scale


@triton.jit  # type: ignore[untyped-decorator]
def load_vector(x, d, is_feature, cos, sin, angles, ROTATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load the vector [D] at ``x``.

    With ROTATE, rotate its interleaved pairs by the D / 2 cosines and sines at offset ``angles``.
    """
    y = tl.load(x + d, mask=is_feature, other=0.0)
    if ROTATE:
        # d ^ 1 is the other feature of d's pair.
        other = tl.load(x + (d ^ 1), mask=is_feature, other=0.0).to(tl.float32)
        c = tl.load(cos + angles + d // 2, mask=is_feature, other=0.0)
        s = tl.load(sin + angles + d // 2, mask=is_feature, other=0.0)
        rotated = y.to(tl.float32) * c + other * tl.where(d % 2 == 0, -s, s)
        y = rotated.to(y.dtype)  # round as models.attention.rotate does
    return y


@triton.jit  # type: ignore[untyped-decorator]
def store_vector(  # type: ignore[no-untyped-def]
    x,
    store,
    scales,
    index,
    d,
    is_feature,
    enabled,
    HEAD_DIM: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    """Store a vector [D] at ``index``, counted over all rings, if ``enabled``.

    Returns the vector as a later read yields it, float32 [D].
    """
    if QUANTIZED:
        stored, number, scale = _quantize(x.to(tl.float32))
        number *= scale
        if enabled:
            tl.store(scales + index, scale)
    else:
        stored = x.to(store.dtype.element_ty)
        number = stored.to(tl.float32)
    if enabled:
        tl.store(store + index * HEAD_DIM + d, stored, mask=is_feature)
    return number


class RingPlan(NamedTuple):
    """How programs divide a ring: constants, so that captured launches fit every step.

    Attributes:
        heads: Attention heads.
        window: Positions a ring stores.
        head_dim: Features a head.
        block: Positions that a program loads at once.
        splits: Programs that share a ring.
    """

    heads: int
    window: int
    head_dim: int
    block: int
    splits: int

    @staticmethod
    def of(heads: int, window: int, head_dim: int, dtype: torch.dtype) -> RingPlan:
        """The plan for rings of this shape that are stored in ``dtype``."""
        row_bytes = triton.next_power_of_2(head_dim) * max(2, dtype.itemsize)
        block = max(16, min(BLOCK_POSITIONS, BLOCK_BYTES // row_bytes))
        splits = min(-(-TARGET_PROGRAMS // heads), -(-window // block))
        return RingPlan(heads, window, head_dim, block, splits)


def rotary_pointers(
    rotary: RotaryCosSin | None, queries: int, head_dim: int
) -> tuple[Tensor | None, Tensor | None]:
    """The ``cos`` and ``sin`` arguments of a kernel for so many queries; None without rotation."""
    if rotary is None:
        return None, None
    for part in rotary:
        assert part.numel() == queries * (head_dim // 2) and part.is_contiguous()
        assert part.dtype == torch.float32 and head_dim % 2 == 0
    return rotary
