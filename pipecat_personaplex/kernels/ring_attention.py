"""Attention of one frame over rings of keys and values, each read by its own length.

A ring stores position p at index p % window. After position p, min(p + 1, window) indices are
filled; a softmax does not depend on their order. The filled indices form blocks, which a fixed
number of programs ("splits") share for each query and head. So the grid depends on constants alone,
which lets a CUDA graph capture it; the work depends on the ring's length alone; and a row's result
does not depend on the other rows. A second launch merges the splits.

A frame's own keys and values (in Mimi, those of the frame's two positions that are not later than
the query) are taken from the input, rounded as they are stored. One program also stores them; the
entries that they replace are not read.

Queries and keys may come without rotary embedding. Then each program rotates what it loads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipecat_personaplex.kernels.ring_ops import (
    RingPlan,
    load_vector,
    rotary_pointers,
    store_vector,
)
from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.quantization.kv import KVTensor

SPLIT_WARPS = 4
MERGE_WARPS = 2

_STAGES = tl.constexpr(3)  # one block in use, two being loaded
# Below every score, and finite: the difference of two infinities is NaN.
_LOWEST = tl.constexpr(-1.0e30)


@triton.jit(do_not_specialize=["steps"])  # type: ignore[untyped-decorator]
def _attend_split(  # type: ignore[no-untyped-def]
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

    The first split also attends to the frame's own positions and stores its query's key and value.
    It writes a partial softmax: the weighted sum of values [D], the highest score and the sum of
    the weights.
    """
    split = tl.program_id(0)
    head = tl.program_id(1)
    query = tl.program_id(2)
    row = query // steps
    step = query % steps
    last = tl.load(positions + row) + steps - 1  # the frame's last position, int64
    filled = tl.minimum(last + 1, WINDOW).to(tl.int32)
    newest = (last % WINDOW).to(tl.int32)
    # Even shares of the filled blocks; the last splits of a short ring have none and end here.
    blocks = (filled + BLOCK - 1) // BLOCK
    share = (blocks + SPLITS - 1) // SPLITS
    first = split * share
    end = tl.minimum(first + share, blocks)
    if first < end:
        d = tl.arange(0, BLOCK_DIM)
        n = tl.arange(0, BLOCK)
        is_feature = d < HEAD_DIM
        q_at = q + row * q_row + head * q_head + step * q_step
        x = load_vector(q_at, d, is_feature, cos, sin, query * (HEAD_DIM // 2), ROTATE)
        x = x.to(tl.float32) * scale  # [D]
        ring = (tl.load(slots + row) * HEADS + head) * WINDOW  # the ring's first index of all rings
        # A running softmax for each of a block's BLOCK positions. Threads exchange nothing in the
        # loop but the sums of a score; the BLOCK softmaxes are joined after it.
        top = tl.full([BLOCK], _LOWEST, tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        mixed = tl.zeros([BLOCK, BLOCK_DIM], tl.float32)
        # The running softmax of the frame's own positions: scalar, scalar, [D].
        new_top = tl.max(top, axis=0)
        new_total = tl.sum(total, axis=0)
        new_mixed = tl.sum(mixed, axis=0)
        if split == 0:
            for new in range(step + 1):
                k_at = k + row * k_row + head * k_head + new * k_step
                v_at = v + row * v_row + head * v_head + new * v_step
                angle = (query - step + new) * (HEAD_DIM // 2)
                key = load_vector(k_at, d, is_feature, cos, sin, angle, ROTATE)
                value = tl.load(v_at + d, mask=is_feature, other=0.0)
                index = ring + (tl.load(positions + row) + new) % WINDOW
                own = new == step  # each position is stored by its own query's program
                key = store_vector(
                    key, key_bits, key_scales, index, d, is_feature, own, HEAD_DIM, QUANTIZED
                )
                value = store_vector(
                    value, value_bits, value_scales, index, d, is_feature, own, HEAD_DIM, QUANTIZED
                )
                score = tl.sum(key * x, axis=0)
                higher = tl.maximum(new_top, score)
                fade = tl.exp2(new_top - higher)
                weight = tl.exp2(score - higher)
                new_top = higher
                new_total = new_total * fade + weight
                new_mixed = new_mixed * fade + weight * value
        for block in tl.range(first, end, num_stages=_STAGES):
            ring_index = block * BLOCK + n  # [BLOCK]
            # Positions since the index was written. The frame's own indices (age < steps) are
            # being written by other programs and are not read.
            age = newest - ring_index
            age = tl.where(age < 0, age + WINDOW, age)
            visible = (ring_index < filled) & (age >= steps)
            offsets = ring_index[:, None] * HEAD_DIM + d[None, :]
            if HEAD_DIM == BLOCK_DIM:
                mask = visible[:, None]
            else:
                mask = visible[:, None] & is_feature[None, :]
            key = tl.load(keys + ring * HEAD_DIM + offsets, mask=mask, other=0.0)
            value = tl.load(values + ring * HEAD_DIM + offsets, mask=mask, other=0.0)
            score = tl.sum(key.to(tl.float32) * x[None, :], axis=1)  # [BLOCK]
            if QUANTIZED:
                # One scale per vector: multiply the score, not the D numbers.
                score *= tl.load(key_scales + ring + ring_index, mask=visible, other=0.0)
            score = tl.where(visible, score, _LOWEST)
            higher = tl.maximum(top, score)
            fade = tl.exp2(top - higher)
            weight = tl.where(visible, tl.exp2(score - higher), 0.0)
            top = higher
            total = total * fade + weight
            if QUANTIZED:
                weight *= tl.load(value_scales + ring + ring_index, mask=visible, other=0.0)
            mixed = mixed * fade[:, None] + weight[:, None] * value.to(tl.float32)
        # Join the BLOCK softmaxes and the new positions' softmax.
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
    """One program for each query and head: merge its splits' partial softmaxes."""
    head = tl.program_id(0)
    query = tl.program_id(1)
    row = query // steps
    step = query % steps
    # Splits without a share have written nothing: recompute how many had one.
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
    """Partial softmaxes of a step, from ``_attend_split`` to ``_merge``; all layers share it.

    Attributes:
        sums: Weighted sums of values, float32 [queries, heads, splits, head_dim].
        tops: Highest scores, float32 [queries, heads, splits].
        totals: Sums of the softmax weights, float32 [queries, heads, splits].
    """

    sums: Tensor
    tops: Tensor
    totals: Tensor

    @staticmethod
    def of(plan: RingPlan, queries: int, device: torch.device) -> Workspace:
        """Allocate for a number of queries, which is rows times positions a frame."""
        shape = (queries, plan.heads, plan.splits)
        sums = torch.empty(*shape, plan.head_dim, dtype=torch.float32, device=device)
        tops, totals = torch.empty(2, *shape, dtype=torch.float32, device=device)
        return Workspace(sums, tops, totals)


def attend(
    plan: RingPlan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: KVTensor,
    values: KVTensor,
    slots: Tensor,
    positions: Tensor,
    workspace: Workspace,
    rotary: RotaryCosSin | None = None,
) -> Tensor:
    """Store a frame's keys and values in their rings and attend to the rings: two launches.

    Args:
        plan: The plan of the rings.
        q: [B, H, T, D], any floating-point type, last stride 1.
        k: The same.
        v: The same.
        keys: One layer's stored keys, [slots, H, window, D].
        values: One layer's stored values, [slots, H, window, D].
        slots: The ring of each row, int64 [B].
        positions: The first new position of each row, int64 [B].
        workspace: For at least B * T queries.
        rotary: Angles that the kernels rotate queries and keys by; None if the caller has
            rotated them.

    Returns:
        [B, H, T, D] in ``q``'s type, stored as [B, T, H, D] so that joining heads is a view.
    """
    rows, heads, steps, head_dim = q.shape
    assert slots.shape == positions.shape == (rows,), "one ring and one position a row"
    assert q.stride(3) == k.stride(3) == v.stride(3) == 1, "features are contiguous"
    assert steps <= plan.window, "a frame fits its ring"
    queries, block_dim = rows * steps, triton.next_power_of_2(head_dim)
    cos, sin = rotary_pointers(rotary, queries, head_dim)
    out = torch.empty(rows, steps, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    # Triton launches on the current device, not on the device of its arguments.
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _attend_split[(plan.splits, heads, queries)](
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
            math.log2(math.e) / math.sqrt(head_dim),  # the kernels take exp2 of scores
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
            ROTATE=rotary is not None,
            num_warps=SPLIT_WARPS,
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
