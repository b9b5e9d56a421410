"""Norms, the gated MLP, and products with what stands right before and after them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.models.linear import KernelLinear, Linear

# A slice names a run of slots without a copy, an index tensor any set of them.
Rows = slice | Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 whatever the input is."""

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
    """A product with its neighbours: in one launch where a kernel does it, else one by one.

    Args:
        linear: A ``Linear`` in any of its forms.
        x: [..., K].
        norm: Applied to ``x`` first.
        gate: The outputs are [gate; up], and ``silu(gate) * up`` is wanted.
        residual: What the result is added to.

    Returns:
        [..., N], or with ``gate`` [..., N / 2].
    """
    if isinstance(linear, Linear | KernelLinear):
        weight = linear.kernel_weight(x)
        if weight is not None:
            alpha, eps = (None, 0.0) if norm is None else (norm.alpha, norm.eps)
            return weight.multiply(x, alpha=alpha, eps=eps, gate=gate, residual=residual)
    y: Tensor = linear(x if norm is None else norm(x))
    if gate:
        opening, up = y.chunk(2, dim=-1)
        y = F.silu(opening).mul_(up)
    return y if residual is None else residual + y


class GatedMLP(nn.Module):
    """SiLU-gated MLP; ``linear_in`` gives [gate; up]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear_in = Linear(dim, 2 * hidden)
        self.linear_out = Linear(hidden, dim)

    def forward(
        self, x: Tensor, *, norm: RMSNorm | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """[..., dim] -> [..., dim]; with ``norm`` before it, and added to ``residual``."""
        y = project(self.linear_in, x, norm=norm, gate=True)
        return project(self.linear_out, y, residual=residual)
