"""Streaming causal convolutions. The state between frames is in the caller's buffers.

A frame is short and the layers are wide, so each convolution is one matrix product over the windows
of its input, channels last. On a CPU it reads the weights once, at memory bandwidth. ``state`` has
one row for each row of the input and is updated in place; zeros start a stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipecat_personaplex.models.linear import Linear
from pipecat_personaplex.models.module import Module


def _new_bias(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(channels), requires_grad=False)


class CausalConv(Module):
    """Causal convolution. Its state is the end of the input, which the next frame's windows need.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel: Number of taps.
        stride: Input samples per output sample.
        bias: Whether a bias is added.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True
    ):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.carry = kernel - stride
        self.state_shape = (self.carry, in_channels)
        # Columns are ordered by tap, then by channel.
        self.taps = Linear(kernel * in_channels, out_channels, many_rows=True)
        self.bias = _new_bias(out_channels) if bias else None

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """[B, T * stride, C_in] -> [B, T, C_out]; ``state`` is [B, carry, C_in]."""
        x = torch.cat((state, x), dim=1)
        state.copy_(x[:, -self.carry :])
        windows = x.unfold(1, self.kernel, self.stride)  # [B, T, C_in, kernel]
        return self._product(windows.transpose(2, 3).flatten(2))

    def pointwise(self, x: Tensor) -> Tensor:
        """``forward`` for one tap, which needs no state: [B, T, C_in] -> [B, T, C_out]."""
        return self._product(x)

    def _product(self, windows: Tensor) -> Tensor:
        y: Tensor = self.taps(windows, self.bias)
        return y


class CausalConvTranspose(Module):
    """Upsampling convolution. Its state is the part of the output that overlaps the next frame.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: Upsampling factor; the kernel is twice as long.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.out_channels = out_channels
        self.state_shape = (stride, out_channels)
        # For each input sample, the output of all taps.
        self.taps = Linear(in_channels, 2 * stride * out_channels, many_rows=True)
        self.bias = _new_bias(out_channels)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """[B, T, C_in] -> [B, T * stride, C_out]; ``state`` is [B, stride, C_out]."""
        y: Tensor = self.taps(x)
        y = y.view(*x.shape[:2], 2, self.stride, self.out_channels)
        early, late = y.unbind(2)  # each [B, T, stride, C_out]
        early[:, 0] += state
        early[:, 1:] += late[:, :-1]
        state.copy_(late[:, -1])
        # The carried part has no bias, so that each output sample gets it once.
        return (early + self.bias).flatten(1, 2)


class Downsample(Module):
    """Stride-2 convolution from 25 to 12.5 Hz.

    Unlike Mimi's other convolutions, it pads the start of a stream with the first value.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv = CausalConv(dim, dim, kernel=4, stride=2, bias=False)

    def forward(self, x: Tensor, state: Tensor, first: Tensor) -> Tensor:
        """[B, 2, dim] -> [B, 1, dim]; ``first`` [B] is true for rows whose stream starts."""
        state.copy_(torch.where(first[:, None, None], x[:, :1], state))
        y: Tensor = self.conv(x, state)
        return y


class Upsample(Module):
    """Transposed convolution from 12.5 to 25 Hz, depthwise."""

    stride = 2

    def __init__(self, dim: int):
        super().__init__()
        self.state_shape = (self.stride, dim)
        self.weight = nn.Parameter(torch.empty(2 * self.stride, dim), requires_grad=False)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """[B, 1, dim] -> [B, 2, dim]; ``state`` is [B, 2, dim]."""
        y = x * self.weight
        early: Tensor = y[:, : self.stride] + state
        state.copy_(y[:, self.stride :])
        return early
