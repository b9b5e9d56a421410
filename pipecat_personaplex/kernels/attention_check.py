"""The attention kernels against attention spelled out, once for each kind of ring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipecat_personaplex.kernels.attention import Plan, Workspace, append, attend
from pipecat_personaplex.kernels.kv_format import FP8, KVTensor

# Largest difference allowed to outputs of about one, by the coarser of what is computed with:
# float32 sums in another order, and the rounding of the output.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# A number of e4m3 is off by at most a sixteenth of itself, and what is stored by no more.
_FP8_TOLERANCE = 1 / 16 + 1e-3
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
        append(plan, k, v, keys, values, slots, positions)
        got = attend(plan, q, keys, values, slots, positions, workspace)
        for row, (slot, start) in enumerate(zip((1, 0), starts, strict=True)):
            places = [(start + step) % window for step in range(steps)]
            for store, new in ((keys[slot], k[row]), (values[slot], v[row])):
                _compare("stored", store[:, places].read(torch.float32), new.float(), kv_dtype)
            for step in range(steps):
                seen = [*range(min(start + steps, window))]
                for later in places[step + 1 :]:
                    seen.remove(later)
                expected = _attention(q[row, :, step], keys[slot], values[slot], seen)
                _compare("attended", got[row, :, step].float(), expected, dtype)


def _attention(q: Tensor, keys: KVTensor, values: KVTensor, seen: list[int]) -> Tensor:
    """[H, D] over the places seen of a ring [H, window, D], in float32."""
    k, v = keys[:, seen].read(torch.float32), values[:, seen].read(torch.float32)
    # Not by a matrix product, which may round its input on a GPU.
    scores = (k * q.float()[:, None]).sum(dim=-1) / math.sqrt(q.shape[-1])
    return (scores.softmax(dim=-1)[..., None] * v).sum(dim=1)


def _compare(what: str, got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (got - expected).abs()
    if dtype == FP8:
        error, limit = error / expected.abs().amax(dim=-1, keepdim=True), _FP8_TOLERANCE
    else:
        limit = _TOLERANCES[dtype]
    worst = float(error.max())
    if not worst <= limit:  # nor is NaN
        raise ArithmeticError(f"{what} numbers differ by {worst:.3g}, more than {limit:.3g}")
