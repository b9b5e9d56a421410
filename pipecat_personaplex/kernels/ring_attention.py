"""Attention of one frame over rings of keys and values, each read by its own length.

A ring holds position p at place p % window, so after position p it has min(p + 1, window) places
filled, and in which order they were filled does not matter to a softmax. The filled places are cut
into blocks, and the blocks shared out over a fixed number of programs for each query and head:
the grid depends on the host's constants alone, the work on the ring's length alone, and a row's
result not on its neighbours. A second launch puts the parts together.

A frame's own keys and values (of Mimi's two positions, those that are not later) are attended to as
they come, and laid into the ring on the way by one of the programs; what they replace nobody sees.

Queries and keys may come without their positions' rotation: then each is turned where it is read.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipecat_personaplex.kernels.ring_ops import Plan, Turn, angles, features, put
from pipecat_personaplex.quantization.kv import KVTensor

PART_WARPS = 4
MERGE_WARPS = 2

_STAGES = tl.constexpr(3)  # one block in use, two on their way
# Below every score, and finite: a difference of two infinities would not be a number.
_LOWEST = tl.constexpr(-1.0e30)


@triton.jit(do_not_specialize=["steps"])  # type: ignore[untyped-decorator]
def _attend_part(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    keys,
    values,
    key_bits,
    value_bits,
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
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
    QUANTIZED: tl.constexpr,
    ROTATE: tl.constexpr,
):
    """One program for each query, head and split: its share of the ring's filled blocks.

    The first split has the new positions besides, and puts by its query's own.
    """
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
        x = features(q_at, d, is_feature, cos, sin, query * (HEAD_DIM // 2), ROTATE)
        x = x.to(tl.float32) * scale
        ring = (tl.load(slots + row) * HEADS + head) * WINDOW
        # A softmax of its own for each of a block's places: nothing is exchanged between threads
        # but the scores' sums until the loop is over.
        top = tl.full([BLOCK], _LOWEST, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK, BLOCK_DIM], tl.float32)
        new_top = tl.max(top, axis=0)
        new_total = tl.sum(total, axis=0)
        new_mixed = tl.sum(mixed, axis=0)
        if split == 0:
            for new in range(step + 1):
                k_at = k + row * k_row + head * k_head + new * k_step
                v_at = v + row * v_row + head * v_head + new * v_step
                angle = (query - step + new) * (HEAD_DIM // 2)
                key = features(k_at, d, is_feature, cos, sin, angle, ROTATE)
                value = tl.load(v_at + d, mask=is_feature, other=0.0)
                at = ring + (tl.load(positions + row) + new) % WINDOW
                mine = new == step
                key = put(key, key_bits, key_scales, at, d, is_feature, mine, HEAD_DIM, QUANTIZED)
                value = put(
                    value, value_bits, value_scales, at, d, is_feature, mine, HEAD_DIM, QUANTIZED
                )
                score = tl.sum(key * x, axis=0)
                higher = tl.maximum(new_top, score)
                fade = tl.exp2(new_top - higher)
                weight = tl.exp2(score - higher)
                new_top = higher
                new_total = new_total * fade + weight
                new_mixed = new_mixed * fade + weight * value
        for block in tl.range(first, end, num_stages=_STAGES):
            place = block * BLOCK + n
            age = newest - place
            age = tl.where(age < 0, age + WINDOW, age)
            seen = (place < filled) & (age >= steps)
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
        highest = tl.maximum(tl.max(top, axis=0), new_top)
        weight = tl.exp2(top - highest)
        new_weight = tl.exp2(new_top - highest)
        part = (query * HEADS + head) * SPLITS + split
        tl.store(tops + part, highest)
        tl.store(totals + part, tl.sum(total * weight, axis=0) + new_total * new_weight)
        mixed = tl.sum(mixed * weight[:, None], axis=0) + new_mixed * new_weight
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


def attend(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: KVTensor,
    values: KVTensor,
    slots: Tensor,
    positions: Tensor,
    workspace: Workspace,
    turn: Turn | None = None,
) -> Tensor:
    """Attend to a frame's keys and values and to what the rings hold; lay the new ones into them.

    Args:
        plan: Of the rings.
        q: [B, H, T, D], any float, D contiguous.
        k: The same.
        v: The same.
        keys: One layer's, [slots, H, window, D].
        values: The same.
        slots: The rows' rings, int64 [B].
        positions: The first new position of each, int64 [B].
        workspace: For at least B * T queries.
        turn: Turns queries and keys first.

    Returns:
        [B, H, T, D] in ``q``'s dtype, its heads side by side in memory.
    """
    rows, heads, steps, head_dim = q.shape
    assert slots.shape == positions.shape == (rows,), "one ring and one position a row"
    assert q.stride(3) == k.stride(3) == v.stride(3) == 1, "features lie side by side"
    assert steps <= plan.window, "a frame fits its ring"
    queries, block_dim = rows * steps, triton.next_power_of_2(head_dim)
    cos, sin = angles(turn, queries, head_dim)
    out = torch.empty(rows, steps, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _attend_part[(plan.splits, heads, queries)](
            q,
            k,
            v,
            keys.data,
            values.data,
            keys.bits,
            values.bits,
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
            *k.stride()[:3],
            *v.stride()[:3],
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
