"""Rings of keys and values: how programs share them out, and how vectors come and are kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipecat_personaplex.quantization.kv import FP8_MAX, SMALLEST_AMAX

TARGET_PROGRAMS = 256
"""For one caller: two for each multiprocessor of the largest cards, or nearly. More would take
memory bandwidth from many callers, whose programs are enough without being split."""
BLOCK_PLACES = 32
"""Places that a program reads at once, and fewer where they are more than BLOCK_BYTES: three
programs and more, with two blocks on their way each, fit a multiprocessor."""
BLOCK_BYTES = 8 << 10

_FP8_MAX = tl.constexpr(FP8_MAX)
_SMALLEST_AMAX = tl.constexpr(SMALLEST_AMAX)
_INT_STEP = tl.constexpr(8388608.0)  # 2**23: from here on, float32 holds integers only


@triton.jit
def _quantize(x):  # type: ignore[no-untyped-def]
    """float32 [D] -> e4m3 as uint8 [D], what it stands for, and a scale: see ``kv_format``."""
    # Compared as integers, a NaN is the largest of all and makes the scale one.
    amax = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=0).to(tl.float32, bitcast=True)
    scale = tl.where(amax < _SMALLEST_AMAX, _SMALLEST_AMAX, amax) / _FP8_MAX
    y = tl.abs(x / scale)
    y = tl.where(y < _FP8_MAX, y, _FP8_MAX)
    # By hand, to the nearest, ties to even: what a cast does below the normal numbers and which
    # cards have one differs. Numbers of an exponent are 2**(exponent - 3) apart, those below the
    # normal ones as far as the smallest normal ones.
    exponent = tl.maximum((y.to(tl.int32, bitcast=True) >> 23) - 127, -6)
    per_step = ((127 + 3 - exponent) << 23).to(tl.float32, bitcast=True)
    steps = (y * per_step + _INT_STEP) - _INT_STEP
    code = (exponent + 6) * 8 + steps.to(tl.int32)
    sign = (x.to(tl.int32, bitcast=True) >> 24) & 0x80
    number = steps / per_step
    return (code | sign).to(tl.uint8), tl.where(x < 0, -number, number), scale


@triton.jit  # type: ignore[untyped-decorator]
def features(x, d, is_feature, cos, sin, angles, ROTATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A vector at ``x``, its interleaved pairs turned by the angles at ``angles`` if so wished."""
    y = tl.load(x + d, mask=is_feature, other=0.0)
    if ROTATE:
        other = tl.load(x + (d ^ 1), mask=is_feature, other=0.0).to(tl.float32)
        c = tl.load(cos + angles + d // 2, mask=is_feature, other=0.0)
        s = tl.load(sin + angles + d // 2, mask=is_feature, other=0.0)
        turned = y.to(tl.float32) * c + other * tl.where(d % 2 == 0, -s, s)
        y = turned.to(y.dtype)  # rounded, as it is where no kernel turns it
    return y


@triton.jit  # type: ignore[untyped-decorator]
def put(x, kept, scales, at, d, is_feature, here, HEAD_DIM: tl.constexpr, QUANTIZED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store a vector at place ``at`` of all rings, where ``here``; what a reader finds there."""
    if QUANTIZED:
        stored, number, scale = _quantize(x.to(tl.float32))
        number *= scale
        if here:
            tl.store(scales + at, scale)
    else:
        stored = x.to(kept.dtype.element_ty)
        number = stored.to(tl.float32)
    if here:
        tl.store(kept + at * HEAD_DIM + d, stored, mask=is_feature)
    return number


Turn = tuple[Tensor, Tensor]
"""Cosines and sines of a frame's positions, one of each for every interleaved pair of features:
float32 [B, 1, T, D / 2], contiguous."""


class Plan(NamedTuple):
    """How the rings of a cache are read: constants of the host's.

    Attributes:
        heads: Attention heads.
        window: Places a ring.
        head_dim: Features a head.
        block: Places that a program reads at once.
        splits: Programs that share a ring.
    """

    heads: int
    window: int
    head_dim: int
    block: int
    splits: int

    @staticmethod
    def of(heads: int, window: int, head_dim: int, dtype: torch.dtype) -> Plan:
        """For rings of this shape, kept in ``dtype``."""
        row_bytes = triton.next_power_of_2(head_dim) * max(2, dtype.itemsize)
        block = max(16, min(BLOCK_PLACES, BLOCK_BYTES // row_bytes))
        splits = min(-(-TARGET_PROGRAMS // heads), -(-window // block))
        return Plan(heads, window, head_dim, block, splits)


def angles(turn: Turn | None, queries: int, head_dim: int) -> Turn | tuple[None, None]:
    """What the kernels take of a turn."""
    if turn is None:
        return None, None
    for part in turn:
        assert part.numel() == queries * (head_dim // 2) and part.is_contiguous()
        assert part.dtype == torch.float32 and head_dim % 2 == 0
    return turn
