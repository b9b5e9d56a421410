"""The depth transformer: eight steps per frame, one per codebook, each with its own weights.

Step i turns the frame's hidden state and the previous token (the text token, then the code of
codebook i - 1) into the logits of codebook i, and attends to the steps before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import CODEBOOKS
from pipecat_personaplex.kernels import cpu_attention
from pipecat_personaplex.kernels.availability import cpu_attention_works, depth_attention_works
from pipecat_personaplex.models.attention import SelfAttention
from pipecat_personaplex.models.kernel_weight import KernelWeight
from pipecat_personaplex.models.layers import GatedMLP, RMSNorm, embedding_table, project
from pipecat_personaplex.models.linear import Linear, stack_linears
from pipecat_personaplex.models.module import Module

# Features of a step below which compiling the CPU kernel is not worth it.
_CPU_KERNEL_MIN_DIM = 512

Choose = Callable[[int, Tensor], Tensor]
"""Samples one code per row: (codebook, floating-point logits [B, card]) -> codes [B] int64."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Stores k and v of a step and attends to the frame's steps so far: (q, k, v, each [B, H, 1, D],
keys and values of the frame, each [B, H, 8, D], step) -> [B, H, 1, D]."""


def attend_in_torch(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, step: int
) -> Tensor:
    """The ``Attend`` that needs no kernel."""
    keys[:, :, step : step + 1] = k
    values[:, :, step : step + 1] = v
    return F.scaled_dot_product_attention(q, keys[:, :, : step + 1], values[:, :, : step + 1])


def _repays_cpu_kernel(head_dim: int, table: Tensor) -> bool:
    """Whether the CPU kernel attends to such heads, and the model is large enough to compile it."""
    return (
        table.shape[-1] >= _CPU_KERNEL_MIN_DIM
        and cpu_attention.can_attend(head_dim, table.dtype, table.dtype)
        and cpu_attention_works(head_dim, table.dtype)
    )


class FrameCache:
    """Keys and values of one frame's steps. Each frame starts with a new cache.

    Args:
        attend: Attends in each step.
    """

    def __init__(self, attend: Attend) -> None:
        self._attend = attend
        self._layers: list[tuple[Tensor, Tensor]] = []  # keys and values, each [B, H, 8, D]
        self._step = 0

    def begin(self, step: int) -> None:
        """Set the step of the following ``attend`` calls."""
        self._step = step

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v of the current step, then attend: each [B, H, 1, D] -> [B, H, 1, D]."""
        if self._step == 0:
            shape = (*k.shape[:2], CODEBOOKS, k.shape[-1])
            self._layers.append((k.new_empty(shape), v.new_empty(shape)))
        keys, values = self._layers[layer]
        return self._attend(q, k, v, keys, values, self._step)


class DepthLayer(Module):
    """A layer whose norms are shared by all steps; each step has its own projections and MLP."""

    def __init__(self, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.norm2 = RMSNorm(dim)
        self.self_attn = nn.ModuleList(SelfAttention(dim, num_heads) for _ in range(CODEBOOKS))
        self.gating = nn.ModuleList(GatedMLP(dim, hidden) for _ in range(CODEBOOKS))

    def forward(self, x: Tensor, step: int, layer: int, cache: FrameCache) -> Tensor:
        """One step of one layer: [B, 1, dim] -> [B, 1, dim]."""
        x = self.self_attn[step](x, cache, layer, None, norm=self.norm1, residual=x)
        y: Tensor = self.gating[step](x, norm=self.norm2, residual=x)
        return y


class DepthTransformer(Module):
    """Generates a frame's eight agent codes from its hidden state and text token.

    The checkpoint's steps 8..15 predict the caller's codes. The caller's codes are always known and
    those steps do not influence the agent's tokens, so they are neither loaded nor run.

    Attributes:
        attend: How each step attends; ``use_kernels`` chooses it.
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
        self.text_emb = embedding_table(text_card + 1, dim)
        self.emb = nn.ModuleList(embedding_table(card + 1, dim) for _ in range(CODEBOOKS - 1))
        self.layers = nn.ModuleList(DepthLayer(dim, num_heads, hidden) for _ in range(num_layers))
        self.heads = nn.ModuleList(Linear(dim, card, quantizable=False) for _ in range(CODEBOOKS))
        for module in self.modules():
            if isinstance(module, Linear):
                module.allow_int4 = False
        self._head_dim = dim // num_heads
        self.attend: Attend = attend_in_torch
        self._stacked_inputs: KernelWeight | None = None

    def use_kernels(self) -> None:
        """Reduce launches with the kernels that work here; call it after loading the weights."""
        self._stacked_inputs = stack_linears(self.inputs)
        table = self.text_emb.weight
        if depth_attention_works(table.device, table.dtype):
            from pipecat_personaplex.kernels.depth_attention import depth_attention

            self.attend = depth_attention
        elif table.device.type == "cpu" and _repays_cpu_kernel(self._head_dim, table):
            self.attend = cpu_attention.attend_frame

    def forward(
        self, hidden: Tensor, text: Tensor, choose: Choose, steps: int = CODEBOOKS
    ) -> Tensor:
        """Run the first ``steps`` steps of a frame.

        Args:
            hidden: The temporal transformer's normed output, [B, input_dim].
            text: The frame's text token, [B] int64.
            choose: Samples each codebook's code from its logits.
            steps: Codebooks to generate, at most eight.

        Returns:
            The agent's codes, [B, steps] int64.
        """
        cache = FrameCache(self.attend)
        inputs = self._inputs(hidden[:, None], steps)  # each [B, 1, dim]
        previous = self.text_emb(text)  # [B, dim]
        codes = []
        for step in range(steps):
            cache.begin(step)
            x = inputs[step] + previous[:, None]  # [B, 1, dim]
            for index, layer in enumerate(self.layers):
                x = layer(x, step, index, cache)
            # [B, 1, dim] -> logits [B, card] -> code [B]; no host synchronisation.
            code = choose(step, project(self.heads[step], x)[:, 0])
            codes.append(code)
            if step + 1 < steps:
                previous = self.emb[step](code)
        return torch.stack(codes, dim=1)

    def _inputs(self, hidden: Tensor, steps: int) -> Sequence[Tensor]:
        """Project the hidden state for each step: [B, 1, input_dim] -> [B, 1, dim] each."""
        # Stacked weights compute all eight even for fewer steps: one kernel to compile, not two.
        if self._stacked_inputs is None:
            return [project(linear, hidden) for linear in self.inputs[:steps]]
        return self._stacked_inputs.multiply(hidden).chunk(CODEBOOKS, dim=-1)
