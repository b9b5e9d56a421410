"""The temporal transformer: one position per frame."""

from __future__ import annotations

from torch import Tensor, nn

from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.models.attention import KVStore, SelfAttention
from pipecat_personaplex.models.layers import GatedMLP, RMSNorm
from pipecat_personaplex.models.module import Module


class TemporalLayer(Module):
    """Attention and gated MLP, each after an RMS norm and with a residual connection."""

    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.self_attn = SelfAttention(dim, num_heads)
        self.norm2 = RMSNorm(dim)
        self.gating = GatedMLP(dim, hidden)

    def forward(
        self, x: Tensor, kv: KVStore, layer: int, rotary: RotaryCosSin | None, last_only: bool
    ) -> Tensor:
        """[B, T, dim] -> [B, T, dim], or with ``last_only`` [B, 1, dim]."""
        residual = x[:, -1:] if last_only else x
        x = self.self_attn(x, kv, layer, rotary, last_only, norm=self.norm1, residual=residual)
        y: Tensor = self.gating(x, norm=self.norm2, residual=x)
        return y


class TemporalTransformer(Module):
    """The stack of layers."""

    def __init__(self, dim: int, num_heads: int, num_layers: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(
            TemporalLayer(dim, num_heads, hidden) for _ in range(num_layers)
        )

    def forward(
        self, x: Tensor, kv: KVStore, rotary: RotaryCosSin | None, last_only: bool = False
    ) -> Tensor:
        """Run all layers.

        Args:
            x: [B, T, dim].
            kv: Stored keys and values of all layers.
            rotary: Angles of the T positions; None if ``kv`` rotates.
            last_only: In the last layer, compute the last position only.

        Returns:
            [B, T, dim], or with ``last_only`` [B, 1, dim].
        """
        final = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, kv, index, rotary, last_only and index == final)
        return x
