"""Attention of one frame over rings of keys and values, each read by its own length.

A ring holds position p at place p % window, so after position p it has min(p + 1, window) places
filled, and in which order they were filled does not matter to a softmax. The filled places are cut
into blocks, and the blocks shared out over a fixed number of programs for each query and head:
the grid depends on the host's constants alone, the work on the ring's length alone, and a row's
result not on its neighbours. A second launch puts the parts together.

A frame of several positions (Mimi's two) is written first and then attended to; each position then
leaves out those that come after it.

Queries and keys may come without their positions' rotation: then each is turned where it is read.
"""

from __future__ import annotations

import math
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
PART_WARPS = 4
MERGE_WARPS = 2
APPEND_WARPS = 1

_STAGES = tl.constexpr(3)  # one block in use, two on their way
# Below every score, and finite: a difference of two infinities would not be a number.
_LOWEST = tl.constexpr(-1.0e30)
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


@triton.jit
def _features(x, d, is_feature, cos, sin, angles, ROTATE: tl.constexpr):  # type: ignore[no-untyped-def]
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
    new_key = _features(k_at, d, is_feature, cos, sin, query * (HEAD_DIM // 2), ROTATE)
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


@triton.jit(do_not_specialize=["steps"])  # type: ignore[untyped-decorator]
def _attend_part(  # type: ignore[no-untyped-def]
    q,
    keys,
    values,
    key_scales,
    value_scales,
    slots,
    positions,
    cos,
    sin,
    sums,
    tops,
    totals,
    scale,
    steps,
    q_row,
    q_head,
    q_step,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """One program for each query, head and split: its share of the ring's filled blocks."""
    split = tl.program_id(0)
    head = tl.program_id(1)
    query = tl.program_id(2)
    row = query // steps
    step = query % steps
    last = tl.load(positions + row) + steps - 1
    filled = tl.minimum(last + 1, WINDOW).to(tl.int32)
    newest = (last % WINDOW).to(tl.int32)
    blocks = (filled + BLOCK - 1) // BLOCK
    share = (blocks + SPLITS - 1) // SPLITS
    first = split * share
    end = tl.minimum(first + share, blocks)
    if first < end:
        d = tl.arange(0, BLOCK_DIM)
        n = tl.arange(0, BLOCK)
        is_feature = d < HEAD_DIM
        q_at = q + row * q_row + head * q_head + step * q_step
        x = _features(q_at, d, is_feature, cos, sin, query * (HEAD_DIM // 2), ROTATE)
        x = x.to(tl.float32) * scale
        ring = (tl.load(slots + row) * HEADS + head) * WINDOW
        # A softmax of its own for each of a block's places: nothing is exchanged between threads
        # but the scores' sums until the loop is over.
        top = tl.full([BLOCK], _LOWEST, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK, BLOCK_DIM], tl.float32)
        for block in tl.range(first, end, num_stages=_STAGES):
            place = block * BLOCK + n
            age = newest - place
            age = tl.where(age < 0, age + WINDOW, age)
            seen = (place < filled) & (age >= steps - 1 - step)
            offsets = place[:, None] * HEAD_DIM + d[None, :]
            if HEAD_DIM == BLOCK_DIM:
                mask = seen[:, None]
            else:
                mask = seen[:, None] & is_feature[None, :]
            key = tl.load(keys + ring * HEAD_DIM + offsets, mask=mask, other=0.0)
            value = tl.load(values + ring * HEAD_DIM + offsets, mask=mask, other=0.0)
            score = tl.sum(key.to(tl.float32) * x[None, :], axis=1)
            if QUANTIZED:
                score *= tl.load(key_scales + ring + place, mask=seen, other=0.0)
            score = tl.where(seen, score, _LOWEST)
            higher = tl.maximum(top, score)
            fade = tl.exp2(top - higher)
            weight = tl.where(seen, tl.exp2(score - higher), 0.0)
            top = higher
            total = total * fade + weight
            if QUANTIZED:
                weight *= tl.load(value_scales + ring + place, mask=seen, other=0.0)
            mixed = mixed * fade[:, None] + weight[:, None] * value.to(tl.float32)
        highest = tl.max(top, axis=0)
        weight = tl.exp2(top - highest)
        part = (query * HEADS + head) * SPLITS + split
        tl.store(tops + part, highest)
        tl.store(totals + part, tl.sum(total * weight, axis=0))
        mixed = tl.sum(mixed * weight[:, None], axis=0)
        tl.store(sums + part * HEAD_DIM + d, mixed, mask=is_feature)


@triton.jit(do_not_specialize=["steps"])  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    out,
    positions,
    sums,
    tops,
    totals,
    steps,
    out_row,
    out_head,
    out_step,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """One program for each query and head: its parts, weighted by their softmax sums."""
    head = tl.program_id(0)
    query = tl.program_id(1)
    row = query // steps
    step = query % steps
    # Splits that had no share have written nothing.
    filled = tl.minimum(tl.load(positions + row) + steps, WINDOW).to(tl.int32)
    blocks = (filled + BLOCK - 1) // BLOCK
    share = (blocks + SPLITS - 1) // SPLITS
    used = (blocks + share - 1) // share
    d = tl.arange(0, BLOCK_DIM)
    is_feature = d < HEAD_DIM
    s = tl.arange(0, BLOCK_SPLITS)
    part = (query * HEADS + head) * SPLITS + s
    top = tl.load(tops + part, mask=s < used, other=_LOWEST)
    weight = tl.where(s < used, tl.exp2(top - tl.max(top, axis=0)), 0.0)
    total = tl.sum(tl.load(totals + part, mask=s < used, other=0.0) * weight, axis=0)
    mask = (s < used)[:, None] & is_feature[None, :]
    mixed = tl.load(sums + part[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0.0)
    y = tl.sum(mixed * weight[:, None], axis=0) / total
    out_at = out + row * out_row + head * out_head + step * out_step + d
    tl.store(out_at, y.to(out.dtype.element_ty), mask=is_feature)


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


class Workspace(NamedTuple):
    """Where the parts of a step wait to be merged; every layer may use it again.

    Attributes:
        sums: float32 [queries, heads, splits, head_dim].
        tops: Highest scores, float32 [queries, heads, splits].
        totals: Softmax sums, the same.
    """

    sums: Tensor
    tops: Tensor
    totals: Tensor

    @staticmethod
    def of(plan: Plan, queries: int, device: torch.device) -> Workspace:
        """For so many queries: rows times steps."""
        shape = (queries, plan.heads, plan.splits)
        sums = torch.empty(*shape, plan.head_dim, dtype=torch.float32, device=device)
        tops, totals = torch.empty(2, *shape, dtype=torch.float32, device=device)
        return Workspace(sums, tops, totals)


def _angles(turn: Turn | None, queries: int, head_dim: int) -> Turn | tuple[None, None]:
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
    cos, sin = _angles(turn, rows * steps, head_dim)
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


def attend(
    plan: Plan,
    q: Tensor,
    keys: KVTensor,
    values: KVTensor,
    slots: Tensor,
    positions: Tensor,
    workspace: Workspace,
    turn: Turn | None = None,
) -> Tensor:
    """Attend to what the rings hold after ``append``.

    Args:
        plan: Of the rings.
        q: [B, H, T, D], any float, D contiguous.
        keys: One layer's, [slots, H, window, D].
        values: The same.
        slots: The rows' rings, int64 [B].
        positions: The first new position of each, int64 [B].
        workspace: For at least B * T queries.
        turn: Turns the queries first.

    Returns:
        [B, H, T, D] in ``q``'s dtype, its heads side by side in memory.
    """
    rows, heads, steps, head_dim = q.shape
    assert slots.shape == positions.shape == (rows,), "one ring and one position a row"
    assert q.stride(3) == 1, "features lie side by side"
    queries, block_dim = rows * steps, triton.next_power_of_2(head_dim)
    cos, sin = _angles(turn, queries, head_dim)
    out = torch.empty(rows, steps, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _attend_part[(plan.splits, heads, queries)](
            q,
            keys.data,
            values.data,
            keys.scales,
            values.scales,
            slots,
            positions,
            cos,
            sin,
            *workspace,
            math.log2(math.e) / math.sqrt(head_dim),
            steps,
            *q.stride()[:3],
            HEADS=heads,
            WINDOW=plan.window,
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            BLOCK=plan.block,
            SPLITS=plan.splits,
            QUANTIZED=keys.scales is not None,
            ROTATE=turn is not None,
            num_warps=PART_WARPS,
        )
        _merge[(heads, queries)](
            out,
            positions,
            *workspace,
            steps,
            *out.stride()[:3],
            HEADS=heads,
            WINDOW=plan.window,
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            BLOCK=plan.block,
            SPLITS=plan.splits,
            BLOCK_SPLITS=triton.next_power_of_2(plan.splits),
            num_warps=MERGE_WARPS,
        )
    return out
