"""Self-attention whose keys and values are stored by the caller, and rotary embedding."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.models.layers import RMSNorm, project
from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.module import Module

_FULL_TURN = 2 * math.pi
# Positions from which a float32 angle is too coarse.
_FLOAT32_POSITIONS = 1 << 16


class KVStore(Protocol):
    """A transformer's stored keys and values, and the attention over them."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v of the new positions, then attend: each [B, H, T, D] -> [B, H, T, D].

        ``q`` may hold fewer positions than ``k``: the last ones.
        """
        ...


@runtime_checkable
class RotatingKVStore(KVStore, Protocol):
    """A store whose ``attend`` can rotate queries and keys itself, which saves launches."""

    def rotate_by(self, rotary: RotaryCosSin) -> None:
        """Rotate q and k by these angles in every ``attend`` of the step."""
        ...


def offer_rotation(rotary: RotaryCosSin, kv: KVStore) -> RotaryCosSin | None:
    """Let the store rotate in this step, if it can.

    Returns:
        ``rotary`` for the layers to apply, or None if the store applies it.
    """
    if isinstance(kv, RotatingKVStore):
        kv.rotate_by(rotary)
        return None
    return rotary


def rotary_frequencies(head_dim: int, max_period: float, device: torch.device) -> Tensor:
    """Angle per position of each pair of features: float32 [D / 2]."""
    exponents = torch.arange(head_dim // 2, dtype=torch.float32, device=device)
    log_period = torch.log(torch.tensor(max_period, dtype=torch.float32, device=device))
    return torch.exp(exponents * (-2.0 * log_period / head_dim))


def rotation(positions: Tensor, frequencies: Tensor) -> RotaryCosSin:
    """Rotary angles of positions.

    Args:
        positions: [B, T] int64.
        frequencies: float32 [D / 2]; see ``rotary_frequencies``.

    Returns:
        Cosines and sines, each float32 [B, 1, T, D / 2].
    """
    positions = positions[:, None, :, None]
    angles = positions.float() * frequencies
    # The reference computes angles in float32. Sessions have no time limit, so later positions use
    # float64, whose rounding stays negligible. Both are computed and selected on the device.
    exact = (positions.double() * frequencies.double()).remainder(_FULL_TURN).float()
    angles = torch.where(positions < _FLOAT32_POSITIONS, angles, exact)
    return RotaryCosSin(angles.cos(), angles.sin())


def rotate(x: Tensor, rotary: RotaryCosSin) -> Tensor:
    """Rotate interleaved pairs of features: [..., B, H, T, D] -> the same, computed in float32."""
    real, imag = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    rotated = torch.stack(
        (real * rotary.cos - imag * rotary.sin, real * rotary.sin + imag * rotary.cos),
        dim=-1,
    )
    return rotated.flatten(-2).to(x.dtype)


class SelfAttention(Module):
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
        rotary: RotaryCosSin | None,
        last_only: bool = False,
        *,
        norm: RMSNorm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Attend to the stored positions and to ``x``.

        Args:
            x: [B, T, dim].
            kv: Stored keys and values of all layers.
            layer: Index of this layer in ``kv``.
            rotary: Angles to rotate q and k by; None if there are none or if ``kv`` rotates.
            last_only: Compute the output of the last position only.
            norm: Applied to ``x`` first.
            residual: Added to the result.

        Returns:
            [B, T, dim], or with ``last_only`` [B, 1, dim].
        """
        batch, steps, dim = x.shape
        heads = (
            project(self.in_proj, x, norm=norm)
            .view(batch, steps, 3, self.num_heads, -1)
            .permute(2, 0, 3, 1, 4)
        )  # [3, B, H, T, D], a view
        q, k = (heads[:2] if rotary is None else rotate(heads[:2], rotary)).unbind(0)
        if last_only:
            q = q[:, :, -1:]
        y = kv.attend(layer, q, k, heads[2])
        joined = y.transpose(1, 2).reshape(batch, -1, dim)  # [B, T, H * D]
        return project(self.out_proj, joined, residual=residual)
