"""Self-attention whose keys and values live with the caller."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipecat_personaplex.models.layers import RMSNorm, project
from pipecat_personaplex.models.linear import Linear

_TURN = 2 * math.pi
_FLOAT32_POSITIONS = 1 << 16


class KVStore(Protocol):
    """Where a transformer's keys and values are kept, and the attention over them."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v, then attend: each [B, H, T, D] -> [B, H, T, D].

        ``q`` may have fewer positions than ``k``, the last ones.
        """
        ...


class RotaryCosSin(NamedTuple):
    """Rotary angles of a step, shared by all layers: each [B, 1, T, D/2] float32."""

    cos: Tensor
    sin: Tensor


@runtime_checkable
class RotatingKVStore(KVStore, Protocol):
    """One that turns queries and keys where it reads them, which spares launches."""

    def rotate_by(self, turn: RotaryCosSin) -> None:
        """Turn by these angles in every ``attend`` of the step."""
        ...


def offer_rotation(turn: RotaryCosSin, kv: KVStore) -> RotaryCosSin | None:
    """The rotation, unless the store takes it over for this step."""
    if isinstance(kv, RotatingKVStore):
        kv.rotate_by(turn)
        return None
    return turn


def rotary_frequencies(head_dim: int, max_period: float, device: torch.device) -> Tensor:
    """Angles per position for each pair of features: [D/2] float32."""
    exponents = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    log_period = torch.log(torch.tensor(max_period, dtype=torch.float32, device=device))
    return torch.exp(exponents * (-2.0 * log_period / head_dim))


def rotation(positions: Tensor, frequencies: Tensor) -> RotaryCosSin:
    """Angles at ``positions`` [B, T] int64."""
    places = positions[:, None, :, None]
    angles = places.float() * frequencies
    # In float32, as the reference, until its rounding begins to tell: calls have no time limit.
    exact = (places.double() * frequencies.double()).remainder(_TURN).float()
    angles = torch.where(places < _FLOAT32_POSITIONS, angles, exact)
    return RotaryCosSin(angles.cos(), angles.sin())


def rotate(x: Tensor, by: RotaryCosSin) -> Tensor:
    """Rotate interleaved feature pairs: [..., B, H, T, D] -> the same, in float32 inside."""
    real, imag = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack(
        (real * by.cos - imag * by.sin, real * by.sin + imag * by.cos),
        dim=-1,
    )
    return turned.flatten(-2).to(x.dtype)


class SelfAttention(nn.Module):
    """Fused q, k, v projection, optional rotation, attention in the store, output projection."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        kv: KVStore,
        layer: int,
        turn: RotaryCosSin | None,
        last_only: bool = False,
        *,
        norm: RMSNorm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """[B, T, dim] -> [B, T, dim], or with ``last_only`` just the last: [B, 1, dim].

        ``layer`` names this layer's place in ``kv``. ``norm`` comes before, and the result is
        added to ``residual``.
        """
        batch, steps, dim = x.shape
        heads = (
            project(self.in_proj, x, norm=norm)
            .view(batch, steps, 3, self.num_heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        q, k = (heads[:2] if turn is None else rotate(heads[:2], turn)).unbind(0)
        if last_only:
            q = q[:, :, -1:]
        y = kv.attend(layer, q, k, heads[2])
        joined = y.transpose(1, 2).reshape(batch, -1, dim)
        return project(self.out_proj, joined, residual=residual)
