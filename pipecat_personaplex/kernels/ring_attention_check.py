"""Compare the ring attention kernels with a plain attention, once for each kind of ring."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipecat_personaplex.kernels.ring_attention import Workspace, attend
from pipecat_personaplex.kernels.ring_ops import RingPlan
from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.kv import KVTensor

# Largest differences allowed: absolute for outputs, which are about one; relative to the vector's
# largest number for what is stored. The coarsest type decides: float32 sums in another order;
# bfloat16 rounds once; e4m3 rounds by up to a sixteenth.
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, FP8: 1 / 16 + 2e-2}
_STEPS = (1, 2)  # positions a frame: one in the temporal transformer, two in Mimi


def check(
    heads: int,
    window: int,
    head_dim: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Run frames of one and two positions in a ring that has wrapped and in one that has not.

    This compiles every kernel that such rings need, so that no step compiles one.

    Args:
        heads: Attention heads.
        window: Positions a ring stores.
        head_dim: Features a head.
        dtype: Type of queries and of new keys and values.
        kv_dtype: Type of the stored keys and values.
        device: Where to run.

    Raises:
        ArithmeticError: A result is wrong. Any other exception means that the kernels do not run.
    """
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    plan = RingPlan.of(heads, window, head_dim, kv_dtype)
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
        rotary = RotaryCosSin(angle.cos(), angle.sin())
        got = attend(plan, q, k, v, keys, values, slots, positions, workspace, rotary)
        q, k = _rotated(q, angle), _rotated(k, angle)
        for row, (slot, start) in enumerate(zip((1, 0), starts, strict=True)):
            ring_indices = [(start + step) % window for step in range(steps)]
            for store, new in ((keys[slot], k[row]), (values[slot], v[row])):
                wanted = new.float()
                largest = wanted.abs().amax(dim=-1, keepdim=True)
                error = (store[:, ring_indices].read(torch.float32) - wanted) / largest
                _require_small("stored", error, dtype, kv_dtype)
            for step in range(steps):
                # The position sees all that is stored but the later positions of its frame.
                visible = [*range(min(start + steps, window))]
                for later in ring_indices[step + 1 :]:
                    visible.remove(later)
                expected = _attention(q[row, :, step], keys[slot], values[slot], visible)
                _require_small("attended", got[row, :, step].float() - expected, dtype)


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate [B, H, T, D], its pairs read as complex numbers, by angles [B, 1, T, D / 2]."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    rotated = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(rotated).flatten(-2).to(x.dtype)


def _attention(q: Tensor, keys: KVTensor, values: KVTensor, visible: list[int]) -> Tensor:
    """Attend with queries [H, D] to some indices of a ring [H, window, D], in float32."""
    k, v = keys[:, visible].read(torch.float32), values[:, visible].read(torch.float32)
    # Multiply and sum: a GPU's matrix product may round its input to TF32.
    scores = (k * q.float()[:, None]).sum(dim=-1) / math.sqrt(q.shape[-1])
    return (scores.softmax(dim=-1)[..., None] * v).sum(dim=1)


def _require_small(what: str, error: Tensor, *dtypes: torch.dtype) -> None:
    worst, limit = float(error.abs().max()), max(_TOLERANCES[dtype] for dtype in dtypes)
    if not worst <= limit:  # true for NaN as well
        raise ArithmeticError(f"{what} numbers differ by {worst:.3g}, more than {limit:.3g}")
