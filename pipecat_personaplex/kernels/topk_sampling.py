"""Top-k and the Gumbel draw from it in one launch, or in two for a large vocabulary.

A row is one program: it holds all logits, sorts the best, adds each rank's noise and takes the
largest sum. What one program cannot hold is first shortlisted by several, each from its part.
Ranks, ties and noise are those of ``engine.sampling``, whose tokens it gives.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SORTED = 4096
"""Numbers that one program can sort."""
PART = 2048
"""Logits that a program shortlists."""
DRAW_WARPS = 8


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """Spread the bits of a uint32 so that every input bit reaches every output bit."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D).to(tl.uint32)
    x = ((x ^ (x >> 15)) * 0x846CA68B).to(tl.uint32)
    return x ^ (x >> 16)


@triton.jit  # type: ignore[untyped-decorator]
def _sort_keys(logits, token, CARD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Integers in the order of the logits; equal ones by token, the smaller first."""
    x = tl.load(logits + token, mask=token < CARD, other=-float("inf")).to(tl.float32)
    x = tl.where(x == 0.0, 0.0, x)  # -0.0 equals 0.0, though its bits do not
    x = tl.where(x == x, x, -float("inf"))  # NaN has no place in an order
    bits = x.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _shortlist(  # type: ignore[no-untyped-def]
    logits,
    listed,
    logits_stride,
    CARD: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program for each row and part of its logits: the part's best."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    key = _sort_keys(logits + row * logits_stride, part * PART + tl.arange(0, PART), CARD)
    place = (row * tl.num_programs(1) + part) * WIDTH + tl.arange(0, WIDTH)
    tl.store(listed + place, tl.topk(key, WIDTH))


@triton.jit(do_not_specialize=["stream"])  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    logits,
    listed,
    tokens,
    seeds,
    frames,
    scales,
    noise_scales,
    top_ks,
    logits_stride,
    params_stride,
    stream,
    CARD: tl.constexpr,
    LISTED: tl.constexpr,
    PADDED: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program a row; it sorts the row's logits, or of those ``LISTED`` that are shortlisted."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, PADDED)
    if LISTED:
        # Below every logit, even an infinite one.
        key = tl.load(listed + row * LISTED + place, mask=place < LISTED, other=-(1 << 62))
    else:
        key = _sort_keys(logits + row * logits_stride, place, CARD)
    best = tl.topk(key, WIDTH)
    order = (best >> 32).to(tl.int32)
    value = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    token = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)

    rank = tl.arange(0, WIDTH)
    seed = tl.load(seeds + row) + tl.zeros_like(best)
    frame = tl.load(frames + row) + tl.zeros_like(best)
    noise_key = _mix(_mix((seed & 0xFFFFFFFF).to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))
    noise_key = _mix(noise_key ^ (frame & 0xFFFFFFFF).to(tl.uint32))
    which = _mix((stream + 1 + tl.zeros_like(rank)).to(tl.uint32))
    hashed = _mix(_mix(noise_key ^ which) ^ rank.to(tl.uint32))
    uniform = ((hashed >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23
    noise = -tl.log(-tl.log(uniform))

    scale = tl.load(scales + row * params_stride)
    noise_scale = tl.load(noise_scales + row * params_stride)
    score = value * scale + noise * noise_scale
    score = tl.where(rank < tl.load(top_ks + row * params_stride), score, -float("inf"))
    winner = tl.argmax(score, axis=0)
    drawn = tl.sum(tl.where(rank == winner, token, 0), axis=0)
    # A row that is not finite draws anything, but a token that has an embedding.
    tl.store(tokens + row, tl.minimum(drawn, CARD - 1).to(tl.int64))


def can_draw(card: int, width: int) -> bool:
    """Whether ``draw`` ranks ``width`` of so many logits."""
    return card <= MAX_SORTED or _listed(card, width) <= MAX_SORTED


def _listed(card: int, width: int) -> int:
    """Tokens on the shortlist of a large vocabulary."""
    return -(-card // PART) * int(triton.next_power_of_2(width))


def draw(
    logits: Tensor,
    *,
    seeds: Tensor,
    frames: Tensor,
    stream: int,
    scale: Tensor,
    noise_scale: Tensor,
    top_k: Tensor,
    width: int,
) -> Tensor:
    """Draw one token a row.

    Args:
        logits: [B, card], float32 or bfloat16, a row's side by side; see ``can_draw``.
        seeds: [B] int64.
        frames: [B] int64.
        stream: Which of the frame's draws this is; keys the noise with seed and frame.
        scale: Of the logits, float32 [B]: one over the temperature.
        noise_scale: Of the noise, float32 [B]: 0 for a greedy row, else 1.
        top_k: Candidates of each row, [B] int64, at least 1 and at most ``width``.
        width: Candidates sorted.

    Returns:
        Tokens, [B] int64.
    """
    rows, card = logits.shape
    assert can_draw(card, width) and logits.stride(1) == 1
    assert scale.stride() == noise_scale.stride() == top_k.stride()
    sorted_width = triton.next_power_of_2(width)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    large = card > MAX_SORTED
    length = _listed(card, width) if large else card
    listed = tokens.new_empty(rows, length) if large else tokens
    padded = triton.next_power_of_2(length)
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        if large:
            _shortlist[(rows, -(-card // PART))](
                logits,
                listed,
                logits.stride(0),
                CARD=card,
                PART=PART,
                WIDTH=sorted_width,
                num_warps=DRAW_WARPS,
            )
        _draw[(rows,)](
            logits,
            listed,
            tokens,
            seeds,
            frames,
            scale,
            noise_scale,
            top_k,
            logits.stride(0),
            scale.stride(0),
            stream,
            CARD=card,
            LISTED=length if large else 0,
            PADDED=padded,
            WIDTH=min(sorted_width, padded),
            num_warps=DRAW_WARPS,
        )
    return tokens
