"""Top-k sampling with Gumbel noise in one launch, or in two for a large vocabulary.

One program samples one row: it sorts the row's best logits, adds each rank's noise and takes the
largest sum. If a row has more logits than one program can sort, several programs first reduce it to
a shortlist, each from its part. Ranks, ties and noise are those of ``engine.sampling``, so the
tokens are the same.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_SORTED = 4096
"""Most numbers that one program sorts."""
PART = 2048
"""Logits that one program reduces to its part of the shortlist."""
SAMPLE_WARPS = 8


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """Hash a uint32 so that every input bit reaches every output bit."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D).to(tl.uint32)
    x = ((x ^ (x >> 15)) * 0x846CA68B).to(tl.uint32)
    return x ^ (x >> 16)


@triton.jit  # type: ignore[untyped-decorator]
def _sort_keys(logits, token, CARD: tl.constexpr):  # type: ignore[no-untyped-def]
    """int64 keys that sort as the logits of ``token`` do; of equal logits, the smaller token first.

    The upper 32 bits hold the logit, the lower 32 bits the token.
    """
    x = tl.load(logits + token, mask=token < CARD, other=-float("inf")).to(tl.float32)
    x = tl.where(x == 0.0, 0.0, x)  # -0.0 equals 0.0 but has other bits
    x = tl.where(x == x, x, -float("inf"))  # NaN sorts last
    # Floats sort as their bits do if those of negative numbers are inverted.
    bits = x.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (order.to(tl.int64) << 32) | (0x7FFFFFFF - token).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _shortlist(  # type: ignore[no-untyped-def]
    logits,
    shortlist,
    logits_stride,
    CARD: tl.constexpr,
    PART: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """One program for each row and part of its logits [PART]: the keys of the best WIDTH."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    key = _sort_keys(logits + row * logits_stride, part * PART + tl.arange(0, PART), CARD)
    offset = (row * tl.num_programs(1) + part) * WIDTH + tl.arange(0, WIDTH)
    tl.store(shortlist + offset, tl.topk(key, WIDTH))


@triton.jit(do_not_specialize=["stream"])  # type: ignore[untyped-decorator]
def _sample(  # type: ignore[no-untyped-def]
    logits,
    shortlist,
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
    """One program a row: sort its CARD logits, or its LISTED keys of the shortlist, and sample."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, PADDED)
    if LISTED:
        # The padding sorts below every logit, even -inf.
        key = tl.load(shortlist + row * LISTED + index, mask=index < LISTED, other=-(1 << 62))
    else:
        key = _sort_keys(logits + row * logits_stride, index, CARD)
    best = tl.topk(key, WIDTH)  # [WIDTH], descending: the index is the rank
    order = (best >> 32).to(tl.int32)
    value = (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    token = 0x7FFFFFFF - (best & 0x7FFFFFFF).to(tl.int32)

    # Gumbel noise [WIDTH] from a hash of seed, frame, stream and rank, as in
    # engine.sampling.gumbel_noise.
    rank = tl.arange(0, WIDTH)
    seed = tl.load(seeds + row) + tl.zeros_like(best)
    frame = tl.load(frames + row) + tl.zeros_like(best)
    noise_key = _mix(_mix((seed & 0xFFFFFFFF).to(tl.uint32)) ^ (seed >> 32).to(tl.uint32))
    noise_key = _mix(noise_key ^ (frame & 0xFFFFFFFF).to(tl.uint32))
    stream_hash = _mix((stream + 1 + tl.zeros_like(rank)).to(tl.uint32))
    hashed = _mix(_mix(noise_key ^ stream_hash) ^ rank.to(tl.uint32))
    uniform = ((hashed >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2**-23
    noise = -tl.log(-tl.log(uniform))

    scale = tl.load(scales + row * params_stride)
    noise_scale = tl.load(noise_scales + row * params_stride)
    score = value * scale + noise * noise_scale
    score = tl.where(rank < tl.load(top_ks + row * params_stride), score, -float("inf"))
    winner = tl.argmax(score, axis=0)
    sampled = tl.sum(tl.where(rank == winner, token, 0), axis=0)
    # A row with NaN or infinite logits yields an arbitrary token, but one that has an embedding.
    tl.store(tokens + row, tl.minimum(sampled, CARD - 1).to(tl.int64))


def can_sample(card: int, width: int) -> bool:
    """Whether ``sample`` supports this vocabulary size and number of candidates."""
    return card <= MAX_SORTED or _shortlist_length(card, width) <= MAX_SORTED


def _shortlist_length(card: int, width: int) -> int:
    """Keys on a row's shortlist."""
    return -(-card // PART) * int(triton.next_power_of_2(width))


def sample(
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
    """Sample one token for each row.

    Args:
        logits: [B, card], float32 or bfloat16, last stride 1; see ``can_sample``.
        seeds: Seed of each row's session, [B] int64.
        frames: Frame index of each row, [B] int64.
        stream: Index of the token stream in the frame; with seed and frame, the key of the noise.
        scale: Factor of the logits, float32 [B]: 1 / temperature.
        noise_scale: Factor of the noise, float32 [B]: 0 for a greedy row, else 1.
        top_k: Candidates of each row, [B] int64, from 1 to ``width``.
        width: Candidates that are sorted.

    Returns:
        Tokens, [B] int64.
    """
    rows, card = logits.shape
    assert can_sample(card, width) and logits.stride(1) == 1
    assert scale.stride() == noise_scale.stride() == top_k.stride()
    sorted_width = triton.next_power_of_2(width)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    large = card > MAX_SORTED
    length = _shortlist_length(card, width) if large else card
    shortlist = tokens.new_empty(rows, length) if large else tokens  # not read unless large
    padded = triton.next_power_of_2(length)
    # Triton launches on the current device, not on the device of its arguments.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        if large:
            _shortlist[(rows, -(-card // PART))](
                logits,
                shortlist,
                logits.stride(0),
                CARD=card,
                PART=PART,
                WIDTH=sorted_width,
                num_warps=SAMPLE_WARPS,
            )
        _sample[(rows,)](
            logits,
            shortlist,
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
            num_warps=SAMPLE_WARPS,
        )
    return tokens
