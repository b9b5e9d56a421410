"""RMS norm, gated MLP, and products fused with the norm, gate and residual around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.low_bit_linear import CpuKernelLinear, KernelLinear
from pipecat_personaplex.models.module import Module

Rows = slice | Tensor
"""Slots of a batch: a slice selects consecutive slots as a view, an int64 tensor [B] any slots by a
copy."""


def embedding_table(rows: int, dim: int) -> nn.Embedding:
    """Return a table without initial values: a checkpoint has them.

    On the meta device, initial values would import the compiler, a second and 150 MB.
    """
    return nn.Embedding(rows, dim, _weight=torch.empty(rows, dim))


class RMSNorm(Module):
    """Root-mean-square norm, computed in float32 for any input type."""

    def __init__(self, dim: int, eps: float = 1e-8):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(dim), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        y = F.rms_norm(x.float(), self.alpha.shape, self.alpha.float(), self.eps)
        return y.to(x.dtype)


def project(
    linear: nn.Module,
    x: Tensor,
    *,
    norm: RMSNorm | None = None,
    gate: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Norm, product, gate and residual: one launch if a kernel supports it, else one by one.

    Args:
        linear: A ``Linear``, or what ``optimize_linear`` made of it.
        x: [..., K].
        norm: Applied to ``x`` first.
        gate: Whether the outputs are [gate; up], of which ``silu(gate) * up`` is returned.
        residual: Added to the result.

    Returns:
        [..., N], or with ``gate`` [..., N / 2].
    """
    if isinstance(linear, Linear | KernelLinear | CpuKernelLinear):
        weight = linear.kernel_weight(x)
        if weight is not None:
            alpha, eps = (None, 0.0) if norm is None else (norm.alpha, norm.eps)
            return weight.multiply(x, alpha=alpha, eps=eps, gate=gate, residual=residual)
    y: Tensor = linear(x if norm is None else norm(x))
    if gate:
        gates, up = y.chunk(2, dim=-1)
        y = F.silu(gates).mul_(up)
    return y if residual is None else residual + y


class GatedMLP(Module):
    """MLP with a SiLU gate; ``linear_in`` computes [gate; up]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear_in = Linear(dim, 2 * hidden)
        self.linear_out = Linear(hidden, dim)

    def forward(
        self, x: Tensor, *, norm: RMSNorm | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """[..., dim] -> [..., dim]; applies ``norm`` first and adds ``residual`` to the result."""
        y = project(self.linear_in, x, norm=norm, gate=True)
        return project(self.linear_out, y, residual=residual)
