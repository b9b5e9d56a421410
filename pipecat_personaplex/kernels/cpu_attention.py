"""Attention of a step over rings on a CPU, by the kernel in ``kernels/cpu/attention.cpp``.

It rotates and stores the new keys and values, and reads each ring once, to its filled length, in
the type that it is stored in. Scores and sums are float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.kernels.cpu_library import cpu_library
from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.kv import KVTensor

HEAD_DIMS = (32, 64, 96, 128, 256)
"""Features per head that the kernel is compiled for."""
FORMATS = {torch.float32: 0, torch.bfloat16: 1, FP8: 2}
"""Types of stored keys and values, by the number that the kernel takes."""


def can_attend(head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> bool:
    """Whether the kernel is compiled for such heads, queries and stored keys and values."""
    return dtype == torch.float32 and kv_dtype in FORMATS and head_dim in HEAD_DIMS


class Rows:
    """The sessions of one step, as the kernel takes them.

    Args:
        slots: Slot of each session.
        ring_indices: Ring index of each session's new position.
        filled: Filled ring indices of each session, the new one included.
    """

    def __init__(self, slots: Sequence[int], ring_indices: Sequence[int], filled: Sequence[int]):
        numbers = ctypes.c_int64 * len(slots)
        self.slots = numbers(*slots)
        self.ring_indices = numbers(*ring_indices)
        self.filled = numbers(*filled)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: KVTensor,
    values: KVTensor,
    rows: Rows,
    rotary: RotaryCosSin | None,
) -> Tensor:
    """Store one position of each session, then attend to the filled part of its ring.

    Args:
        q: Queries, float32 [B, H, 1, D].
        k: New keys, the same shape.
        v: New values, the same shape.
        keys: One layer's stored keys, [slots, H, window, D].
        values: One layer's stored values, the same shape.
        rows: The B sessions.
        rotary: Angles to rotate ``q`` and ``k`` by, each [B, 1, 1, D / 2]; None: no rotation.

    Returns:
        float32 [B, H, 1, D].
    """
    batch, heads, _, dim = q.shape
    if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    cos, sin = rotary or (None, None)
    out = q.new_empty(batch, heads, 1, dim)
    failed = cpu_library().personaplex_attend(
        FORMATS[keys.data.dtype],
        dim,
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        q.stride(0),
        q.stride(1),
        None if cos is None else cos.data_ptr(),
        None if sin is None else sin.data_ptr(),
        keys.data.data_ptr(),
        values.data.data_ptr(),
        None if keys.scales is None else keys.scales.data_ptr(),
        None if values.scales is None else values.scales.data_ptr(),
        rows.slots,
        rows.ring_indices,
        rows.filled,
        batch,
        heads,
        keys.data.shape[-2],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    assert not failed, f"no kernel for heads of {dim}"
    return out


def attend_frame(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: int
) -> Tensor:
    """Store one step of a frame of the depth transformer and attend to its steps so far.

    Args:
        q: Queries, float32 [B, H, 1, D].
        k: New keys, the same shape.
        v: New values, the same shape.
        keys: The frame's keys, float32 [B, H, steps, D]; index ``step`` is written.
        values: The frame's values, the same shape; index ``step`` is written.
        step: Index of this step, from 0.

    Returns:
        float32 [B, H, 1, D].
    """
    rows = _frame_rows(q.shape[0], step)
    return attend(q, k, v, KVTensor(keys, None), KVTensor(values, None), rows, None)


@lru_cache(maxsize=1024)
def _frame_rows(batch: int, step: int) -> Rows:
    """One ring for each session, filled up to this step."""
    return Rows(range(batch), [step] * batch, [step + 1] * batch)


def check(head_dim: int, kv_dtype: torch.dtype) -> None:
    """Compare the kernel with PyTorch: a short and a full ring, in two of three slots.

    Raises:
        RuntimeError: The kernel cannot be had here, or a result is wrong.
    """
    if head_dim not in HEAD_DIMS:
        raise RuntimeError(f"it is compiled for heads of {', '.join(map(str, HEAD_DIMS))}")
    heads, window = 2, 150
    generator = torch.Generator().manual_seed(0)
    device = torch.device("cpu")
    stored = []
    for _ in range(2):
        ring = KVTensor.new((3, heads, window, head_dim), kv_dtype, device, zeros=True)
        ring.put(..., torch.randn(3, heads, window, head_dim, generator=generator))
        stored.append(ring)
    keys, values = stored
    q, k, v = torch.randn(3, 2, heads, 1, head_dim, generator=generator).unbind(0)
    slots, filled = [2, 0], [67, window]
    out = attend(q, k, v, keys, values, Rows(slots, [66, 20], filled), None)
    for row, (slot, length) in enumerate(zip(slots, filled, strict=True)):
        index = (slot, slice(None), slice(length))
        expected = F.scaled_dot_product_attention(
            q[row], keys.read(torch.float32, index), values.read(torch.float32, index)
        )
        if not torch.allclose(out[row], expected, atol=1e-4, rtol=1e-3):
            raise RuntimeError("the result is wrong")
