"""The depth transformer: within one frame, one step a codebook, each step its own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.kernels.availability import depth_attention_works
from pipecat_personaplex.models.attention import SelfAttention
from pipecat_personaplex.models.layers import GatedMLP, RMSNorm, project
from pipecat_personaplex.models.linear import KernelWeight, Linear, stack_linears

Choose = Callable[[int, Tensor], Tensor]
"""(codebook, logits [B, card], floating-point) -> codes [B]."""


class FrameCache:
    """Keys and values of the steps of one frame; a frame never sees another's.

    Args:
        kernel: Whether ``kernels.frame_attention`` attends.
    """

    def __init__(self, kernel: bool) -> None:
        self._kernel = kernel
        self._past: list[tuple[Tensor, Tensor]] = []
        self._step = 0

    def begin(self, step: int) -> None:
        """Say which step the next ``attend`` calls belong to."""
        self._step = step

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One step, each [B, H, 1, D] -> [B, H, 1, D]."""
        if self._step == 0:
            shape = (*k.shape[:2], CODEBOOKS, k.shape[-1])
            self._past.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self._past[layer]
        if self._kernel:
            from pipecat_personaplex.kernels.depth_attention import frame_attention

            return frame_attention(q, k, v, keys, values, self._step)
        keys[:, :, self._step : self._step + 1] = k
        values[:, :, self._step : self._step + 1] = v
        filled = self._step + 1
        return F.scaled_dot_product_attention(q, keys[:, :, :filled], values[:, :, :filled])


class DepthLayer(nn.Module):
    """Norms shared by all steps; projections and MLP one set a step."""

    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.norm2 = RMSNorm(dim)
        self.self_attn = nn.ModuleList(SelfAttention(dim, num_heads) for _ in range(CODEBOOKS))
        self.gating = nn.ModuleList(GatedMLP(dim, hidden) for _ in range(CODEBOOKS))

    def forward(self, x: Tensor, step: int, layer: int, cache: FrameCache) -> Tensor:
        """[B, 1, dim] -> [B, 1, dim]."""
        x = self.self_attn[step](x, cache, layer, None, norm=self.norm1, residual=x)
        y: Tensor = self.gating[step](x, norm=self.norm2, residual=x)
        return y


class DepthTransformer(nn.Module):
    """From a frame's hidden state and text token to its eight agent codes.

    The checkpoint's steps 8..15 predict the caller's codes, which are always given; they never
    change the agent's tokens, so they are neither loaded nor run.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_layers: int,
        hidden: int,
        input_dim: int,
        text_card: int,
        card: int,
    ):
        super().__init__()
        self.inputs = nn.ModuleList(Linear(input_dim, dim) for _ in range(CODEBOOKS))
        self.text_emb = nn.Embedding(text_card + 1, dim)
        self.emb = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(CODEBOOKS - 1))
        self.layers = nn.ModuleList(DepthLayer(dim, num_heads, hidden) for _ in range(num_layers))
        self.heads = nn.ModuleList(Linear(dim, card, quantizable=False) for _ in range(CODEBOOKS))
        for module in self.modules():
            if isinstance(module, Linear):
                module.four_bits = False
        self._attention_kernel = False
        self._stacked_inputs: KernelWeight | None = None

    def use_kernels(self) -> None:
        """Take as few launches as the device allows; once the weights are where they stay."""
        self._stacked_inputs = stack_linears(self.inputs)
        self._attention_kernel = depth_attention_works(
            self.text_emb.weight.device, self.text_emb.weight.dtype
        )

    def forward(
        self, hidden: Tensor, text: Tensor, choose: Choose, steps: int = CODEBOOKS
    ) -> Tensor:
        """Run the eight steps, or the first few.

        Args:
            hidden: The temporal transformer's normed output, [B, input_dim].
            text: The frame's text token, [B].
            choose: Picks each codebook's code from its logits.
            steps: How many codebooks are wanted.

        Returns:
            The agent's codes, [B, steps] int64.
        """
        cache = FrameCache(self._attention_kernel)
        hidden = hidden[:, None]
        given = self._inputs(hidden, steps)
        previous = self.text_emb(text)
        codes = []
        for step in range(steps):
            cache.begin(step)
            x = given[step] + previous[:, None]
            for index, layer in enumerate(self.layers):
                x = layer(x, step, index, cache)
            code = choose(step, project(self.heads[step], x)[:, 0])
            codes.append(code)
            if step + 1 < steps:
                previous = self.emb[step](code)
        return torch.stack(codes, dim=1)

    def _inputs(self, hidden: Tensor, steps: int) -> Sequence[Tensor]:
        """What each step gets of the hidden state: [B, 1, input_dim] -> [B, 1, dim] each."""
        # All at once for a few steps too: no other product has to be compiled.
        if self._stacked_inputs is None:
            return [project(linear, hidden) for linear in self.inputs[:steps]]
        return self._stacked_inputs.multiply(hidden).chunk(CODEBOOKS, dim=-1)
