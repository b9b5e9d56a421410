"""Rings of keys and values: how programs read them, and a frame's new ones laid into them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipecat_personaplex.kernels.kv_format import FP8_MAX, SMALLEST_AMAX, KVTensor

TARGET_PROGRAMS = 256
"""For one caller: two for each multiprocessor of the largest cards, or nearly. More would take
memory bandwidth from many callers, whose programs are enough without being split."""
BLOCK_PLACES = 32
"""Places that a program reads at once, and fewer where they are more than BLOCK_BYTES: three
programs and more, with two blocks on their way each, fit a multiprocessor."""
BLOCK_BYTES = 8 << 10
APPEND_WARPS = 1

_FP8_MAX = tl.constexpr(FP8_MAX)
_SMALLEST_AMAX = tl.constexpr(SMALLEST_AMAX)
_INT_STEP = tl.constexpr(8388608.0)  # 2**23: from here on, float32 holds integers only


@triton.jit
def _quantize(x):  # type: ignore[no-untyped-def]
    """float32 [D] -> e4m3 as uint8 [D] and a scale, as ``kv_format.quantize``."""
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
    return (code | sign).to(tl.uint8), scale


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


@triton.jit(do_not_specialize=["steps"])  # type: ignore[untyped-decorator]
def _append(  # type: ignore[no-untyped-def]
    k,
    v,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    positions,
    cos,
    sin,
    steps,
    k_row,
    k_head,
    k_step,
    v_row,
    v_head,
    v_step,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    QUANTIZED: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """One program for each new position and head: both vectors into their place."""
    head = tl.program_id(0)
    query = tl.program_id(1)
    row = query // steps
    step = query % steps
    place = (tl.load(positions + row) + step) % WINDOW
    at = (tl.load(slots + row) * HEADS + head) * WINDOW + place
    d = tl.arange(0, BLOCK_DIM)
    is_feature = d < HEAD_DIM
    k_at = k + row * k_row + head * k_head + step * k_step
    v_at = v + row * v_row + head * v_head + step * v_step
    new_key = features(k_at, d, is_feature, cos, sin, query * (HEAD_DIM // 2), ROTATE)
    new_value = tl.load(v_at + d, mask=is_feature, other=0.0)
    key_at = keys + at * HEAD_DIM + d
    value_at = values + at * HEAD_DIM + d
    if QUANTIZED:
        key_code, key_scale = _quantize(new_key.to(tl.float32))
        value_code, value_scale = _quantize(new_value.to(tl.float32))
        tl.store(key_at, key_code, mask=is_feature)
        tl.store(value_at, value_code, mask=is_feature)
        tl.store(key_scales + at, key_scale)
        tl.store(value_scales + at, value_scale)
    else:
        tl.store(key_at, new_key.to(keys.dtype.element_ty), mask=is_feature)
        tl.store(value_at, new_value.to(values.dtype.element_ty), mask=is_feature)


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


def append(
    plan: Plan,
    k: Tensor,
    v: Tensor,
    keys: KVTensor,
    values: KVTensor,
    slots: Tensor,
    positions: Tensor,
    turn: Turn | None = None,
) -> None:
    """Write a frame's keys and values into their rings.

    Args:
        plan: Of the rings.
        k: [B, H, T, D], any float, D contiguous.
        v: The same.
        keys: One layer's, [slots, H, window, D].
        values: The same.
        slots: The rows' rings, int64 [B].
        positions: The first new position of each, int64 [B].
        turn: Turns the keys first.
    """
    rows, heads, steps, head_dim = k.shape
    cos, sin = angles(turn, rows * steps, head_dim)
    assert slots.shape == positions.shape == (rows,), "one ring and one position a row"
    assert k.stride(3) == v.stride(3) == 1, "features lie side by side"
    with torch.cuda.device_of(k):  # type: ignore[no-untyped-call]
        _append[(heads, rows * steps)](
            k,
            v,
            keys.bits,
            values.bits,
            keys.scales,
            values.scales,
            slots,
            positions,
            cos,
            sin,
            steps,
            *k.stride()[:3],
            *v.stride()[:3],
            HEADS=heads,
            WINDOW=plan.window,
            HEAD_DIM=head_dim,
            BLOCK_DIM=triton.next_power_of_2(head_dim),
            QUANTIZED=keys.scales is not None,
            ROTATE=turn is not None,
            num_warps=APPEND_WARPS,
        )
