"""Attention over the few steps of one frame, with its keys and values put by, in one launch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["step"])  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    keys,
    values,
    y,
    step,
    heads,
    batch_stride,
    head_stride,
    scale,
    STEPS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    row = tl.program_id(0)
    column = tl.arange(0, PADDED)
    there = column < DIM
    place = (row // heads).to(tl.int64) * batch_stride + (row % heads) * head_stride + column
    query = tl.load(q + place, mask=there, other=0.0).to(tl.float32) * scale
    key = tl.load(k + place, mask=there, other=0.0)
    value = tl.load(v + place, mask=there, other=0.0)

    steps = tl.arange(0, STEPS)
    past = row.to(tl.int64) * STEPS * DIM + steps[:, None] * DIM + column[None, :]
    seen = (steps < step)[:, None] & there[None, :]
    now = (steps == step)[:, None]
    all_keys = tl.load(keys + past, mask=seen, other=0.0).to(tl.float32)
    all_values = tl.load(values + past, mask=seen, other=0.0).to(tl.float32)
    all_keys = tl.where(now, key.to(tl.float32)[None, :], all_keys)
    all_values = tl.where(now, value.to(tl.float32)[None, :], all_values)

    scores = tl.sum(all_keys * query[None, :], axis=1)
    scores = tl.where(steps <= step, scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    out = tl.sum(all_values * weights[:, None], axis=0)

    tl.store(y + row.to(tl.int64) * DIM + column, out.to(y.dtype.element_ty), mask=there)
    put_by = row.to(tl.int64) * STEPS * DIM + step * DIM + column
    tl.store(keys + put_by, key, mask=there)
    tl.store(values + put_by, value, mask=there)


def frame_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: int
) -> Tensor:
    """Put one step's key and value by and attend over the frame's steps so far.

    Args:
        q: [B, H, 1, D], with the strides of ``k`` and ``v``, D's being 1.
        k: [B, H, 1, D].
        v: [B, H, 1, D].
        keys: Of the steps so far, [B, H, S, D] contiguous, S a power of two; step ``step`` is
            written.
        values: Likewise.
        step: Which step this is, from 0.

    Returns:
        [B, H, 1, D], contiguous.
    """
    batch, heads, steps, dim = keys.shape
    assert q.stride() == k.stride() == v.stride() and q.stride(3) == 1
    assert keys.is_contiguous() and values.is_contiguous()
    y = q.new_empty(batch, heads, 1, dim)
    if batch == 0:
        return y
    # Triton launches on the current device, whatever its arguments are on.
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _attend[(batch * heads,)](
            q,
            k,
            v,
            keys,
            values,
            y,
            step,
            heads,
            q.stride(0),
            q.stride(1),
            dim**-0.5,
            STEPS=steps,
            DIM=dim,
            PADDED=triton.next_power_of_2(dim),
            num_warps=1,
        )
    return y


def check(device: torch.device, dtype: torch.dtype) -> None:
    """Compare two steps of a frame with PyTorch's attention.

    Raises:
        RuntimeError: They differ. Whatever else it raises says that kernels do not run here.
    """
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 2, 3, 4, 16, generator=generator).to(device, dtype)
    keys, values = (projected.new_zeros(2, 4, 8, 16) for _ in range(2))
    for step, heads in enumerate(projected):
        q, k, v = heads[:, :, :, None].unbind(1)
        y = frame_attention(q, k, v, keys, values, step)
        seen = slice(step + 1)
        expected = F.scaled_dot_product_attention(q, keys[:, :, seen], values[:, :, seen])
        error = float((y - expected).float().norm() / expected.float().norm())
        if not error < 0.02:
            raise RuntimeError(f"the attention is off by {error:.2%}")
        if not torch.equal(keys[:, :, step], k[:, :, 0]):
            raise RuntimeError("the keys are not put by")
