"""The attention kernels against attention spelled out, once for each kind of ring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipecat_personaplex.kernels.ring_attention import Workspace, attend
from pipecat_personaplex.kernels.ring_ops import Plan
from pipecat_personaplex.quantization.kv import FP8, KVTensor

# Largest difference allowed, of outputs that are about one and of what is stored as a share of its
# vector's largest number, by the coarsest of what is computed with: float32 sums in another order;
# one rounding to bfloat16; a number of e4m3, which is off by a sixteenth of itself at most.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, FP8: 1 / 16 + 2e-2}
_STEPS = (1, 2)


def check(
    heads: int,
    window: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Run frames of one and of two positions, in a ring that has wrapped and in one that has not.

    It also compiles what such rings need, so that nothing is left to compile in a step.

    Args:
        heads: Attention heads.
        window: Places a ring.
        head_dim: Features a head.
        dtype: Of queries, keys and values as they come.
        kv_dtype: In which keys and values are kept.
        device: Where.

    Raises:
        ArithmeticError: A result is wrong.
    """
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    plan = Plan.of(heads, window, head_dim, kv_dtype)
    keys, values = (
        KVTensor.new((2, heads, window, head_dim), kv_dtype, device, zeros=False) for _ in "kv"
    )
    for store in (keys, values):
        for slot in range(2):
            store.put(slot, noise(heads, window, head_dim))
    slots = torch.tensor([1, 0], device=device)
    starts = [3 * window - 1, window // 2]
    for steps in _STEPS[:window]:
        q, k, v = (noise(2, heads, steps, head_dim) for _ in range(3))
        positions = torch.tensor(starts, device=device)
        workspace = Workspace.of(plan, 2 * steps, device)
        shape = (2, 1, steps, head_dim // 2)
        angle = torch.rand(shape, generator=generator, device=device) * 2 * math.pi
        turn = angle.cos(), angle.sin()
        got = attend(plan, q, k, v, keys, values, slots, positions, workspace, turn)
        q, k = _rotated(q, angle), _rotated(k, angle)
        for row, (slot, start) in enumerate(zip((1, 0), starts, strict=True)):
            places = [(start + step) % window for step in range(steps)]
            for store, new in ((keys[slot], k[row]), (values[slot], v[row])):
                wanted = new.float()
                largest = wanted.abs().amax(dim=-1, keepdim=True)
                error = (store[:, places].read(torch.float32) - wanted) / largest
                _require_small("stored", error, dtype, kv_dtype)
            for step in range(steps):
                seen = [*range(min(start + steps, window))]
                for later in places[step + 1 :]:
                    seen.remove(later)
                expected = _attention(q[row, :, step], keys[slot], values[slot], seen)
                _require_small("attended", got[row, :, step].float() - expected, dtype)


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    """[B, H, T, D], its pairs as complex numbers turned by angles [B, 1, T, D / 2]."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def _attention(q: Tensor, keys: KVTensor, values: KVTensor, seen: list[int]) -> Tensor:
    """[H, D] over the places seen of a ring [H, window, D], in float32."""
    k, v = keys[:, seen].read(torch.float32), values[:, seen].read(torch.float32)
    # Not by a matrix product, which may round its input on a GPU.
    scores = (k * q.float()[:, None]).sum(dim=-1) / math.sqrt(q.shape[-1])
    return (scores.softmax(dim=-1)[..., None] * v).sum(dim=1)


def _require_small(what: str, error: Tensor, *dtypes: torch.dtype) -> None:
    worst, limit = float(error.abs().max()), max(_TOLERANCES[dtype] for dtype in dtypes)
    if not worst <= limit:  # nor is NaN
        raise ArithmeticError(f"{what} numbers differ by {worst:.3g}, more than {limit:.3g}")
