"""Attention of one depth step over the steps of its frame: stores k and v and attends, one launch.

A frame has eight steps, so a whole head's keys and values fit the registers of one warp.
"""

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
    """One program per row and head. Loads q, k, v [D] and the stored keys and values [S, D]."""
    row = tl.program_id(0)  # of B * H
    d = tl.arange(0, PADDED)
    is_feature = d < DIM
    offset = (row // heads).to(tl.int64) * batch_stride + (row % heads) * head_stride + d
    query = tl.load(q + offset, mask=is_feature, other=0.0).to(tl.float32) * scale
    key = tl.load(k + offset, mask=is_feature, other=0.0)
    value = tl.load(v + offset, mask=is_feature, other=0.0)

    # [S, D]: earlier steps come from memory, this step from the registers above. Later steps are
    # not loaded: their memory is uninitialised.
    steps = tl.arange(0, STEPS)
    stored = row.to(tl.int64) * STEPS * DIM + steps[:, None] * DIM + d[None, :]
    is_earlier = (steps < step)[:, None] & is_feature[None, :]
    is_current = (steps == step)[:, None]
    all_keys = tl.load(keys + stored, mask=is_earlier, other=0.0).to(tl.float32)
    all_values = tl.load(values + stored, mask=is_earlier, other=0.0).to(tl.float32)
    all_keys = tl.where(is_current, key.to(tl.float32)[None, :], all_keys)
    all_values = tl.where(is_current, value.to(tl.float32)[None, :], all_values)

    scores = tl.sum(all_keys * query[None, :], axis=1)  # [S]
    scores = tl.where(steps <= step, scores, -float("inf"))
    weights = tl.exp(scores - tl.max(scores, axis=0))
    weights = weights / tl.sum(weights, axis=0)
    out = tl.sum(all_values * weights[:, None], axis=0)  # [D]

    tl.store(y + row.to(tl.int64) * DIM + d, out.to(y.dtype.element_ty), mask=is_feature)
    current = row.to(tl.int64) * STEPS * DIM + step * DIM + d
    tl.store(keys + current, key, mask=is_feature)
    tl.store(values + current, value, mask=is_feature)


def depth_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: int
) -> Tensor:
    """Store one step's key and value, then attend to the frame's steps so far.

    Args:
        q: [B, H, 1, D], with the strides of ``k`` and ``v``; the last stride is 1.
        k: [B, H, 1, D].
        v: [B, H, 1, D].
        keys: The frame's keys, [B, H, S, D] contiguous, S a power of two; index ``step`` is
            written.
        values: The frame's values, the same shape; index ``step`` is written.
        step: Index of this step, from 0.

    Returns:
        [B, H, 1, D], contiguous.
    """
    batch, heads, steps, dim = keys.shape
    assert q.stride() == k.stride() == v.stride() and q.stride(3) == 1
    assert keys.is_contiguous() and values.is_contiguous()
    y = q.new_empty(batch, heads, 1, dim)
    if batch == 0:
        return y
    # Triton launches on the current device, not on the device of its arguments.
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
        RuntimeError: The results differ. Any other exception means that the kernel does not run.
    """
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(2, 2, 3, 4, 16, generator=generator).to(device, dtype)
    keys, values = (projected.new_zeros(2, 4, 8, 16) for _ in range(2))
    for step, heads in enumerate(projected):
        q, k, v = heads[:, :, :, None].unbind(1)
        y = depth_attention(q, k, v, keys, values, step)
        so_far = slice(step + 1)
        expected = F.scaled_dot_product_attention(q, keys[:, :, so_far], values[:, :, so_far])
        error = float((y - expected).float().norm() / expected.float().norm())
        if not error < 0.02:
            raise RuntimeError(f"the attention differs from PyTorch's by {error:.2%}")
        if not torch.equal(keys[:, :, step], k[:, :, 0]):
            raise RuntimeError("the keys are not stored")
