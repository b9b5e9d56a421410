"""SEANet: the convolutional encoder and decoder around Mimi's transformers. Channels are last."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.models.config import MimiConfig
from pipecat_personaplex.models.mimi.conv import CausalConv, CausalConvTranspose
from pipecat_personaplex.models.module import Module

StateShape = tuple[int, int]
"""(positions, channels) of a convolution's state for one slot."""
States = Sequence[Tensor]
"""One tensor [B, *StateShape] for each convolution with state, in the order in which they run."""


class ResidualBlock(Module):
    """ELU, convolution to fewer channels, ELU, pointwise convolution back, residual connection."""

    def __init__(self, channels: int, kernel: int, compress: int):
        super().__init__()
        inner = channels // compress
        self.narrow = CausalConv(channels, inner, kernel)
        self.widen = CausalConv(inner, channels, 1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        y = self.narrow(F.elu(x), state)
        return self.widen.pointwise(F.elu_(y)).add_(x)


class Encoder(Module):
    """Audio at 24 kHz to latents at 25 Hz."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        width = config.n_filters
        self.first = CausalConv(1, width, config.kernel_size)
        self.blocks = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.state_shapes = [self.first.state_shape]
        for ratio in reversed(config.ratios):
            block = ResidualBlock(width, config.residual_kernel_size, config.compress)
            down = CausalConv(width, 2 * width, 2 * ratio, ratio)
            self.blocks.append(block)
            self.downs.append(down)
            self.state_shapes += [block.narrow.state_shape, down.state_shape]
            width *= 2
        self.last = CausalConv(width, config.dimension, config.last_kernel_size)
        self.state_shapes.append(self.last.state_shape)

    def forward(self, pcm: Tensor, states: States) -> Tensor:
        """[B, 1920, 1] -> [B, 2, dim]."""
        state = iter(states)
        x = self.first(pcm, next(state))
        for block, down in zip(self.blocks, self.downs, strict=True):
            x = block(x, next(state))
            x = down(F.elu_(x), next(state))
        y: Tensor = self.last(F.elu_(x), next(state))
        return y


class Decoder(Module):
    """Latents at 25 Hz to audio at 24 kHz."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        width = config.n_filters * 2 ** len(config.ratios)
        self.first = CausalConv(config.dimension, width, config.kernel_size)
        self.ups = nn.ModuleList()
        self.blocks = nn.ModuleList()
        self.state_shapes = [self.first.state_shape]
        for ratio in config.ratios:
            up = CausalConvTranspose(width, width // 2, ratio)
            width //= 2
            block = ResidualBlock(width, config.residual_kernel_size, config.compress)
            self.ups.append(up)
            self.blocks.append(block)
            self.state_shapes += [up.state_shape, block.narrow.state_shape]
        self.last = CausalConv(width, 1, config.last_kernel_size)
        self.state_shapes.append(self.last.state_shape)

    def forward(self, latent: Tensor, states: States) -> Tensor:
        """[B, 2, dim] -> [B, 1920, 1]."""
        state = iter(states)
        x = self.first(latent, next(state))
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(F.elu_(x), next(state))
            x = block(x, next(state))
        y: Tensor = self.last(F.elu_(x), next(state))
        return y
