"""The linear layer, and the choice of the form that its device multiplies fastest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels.availability import cpu_gemm_works, gemm_works
from pipecat_personaplex.kernels.cpu_linear import (
    BFLOAT16_MULTIPLE,
    multiply_bfloat16,
    on_huge_pages,
)
from pipecat_personaplex.models.kernel_weight import KernelWeight
from pipecat_personaplex.models.low_bit_linear import KernelLinear, low_bit_linear
from pipecat_personaplex.models.module import Module
from pipecat_personaplex.quantization.weights import quantize

# Below this many weights, the call into oneDNN costs more than it saves if rows are few.
_PACK_MIN_WEIGHTS = 1 << 17
# PyTorch's int8 kernel for CPUs reads past its input if K is not a multiple of this. Such weights
# stay in floating point on every device, so that one file of low-bit weights serves all devices.
_QUANTIZED_MULTIPLE = 16


class Linear(Module):
    """``y = x Wᵀ`` with a weight in floating point. See ``optimize_linear`` for other forms.

    Args:
        in_features: K.
        out_features: N.
        quantizable: Whether the weight may be stored in a low-bit format; output heads may not.
        many_rows: Whether each call multiplies many rows, as a convolution over audio does.

    Attributes:
        allow_int4: Whether the weight may be stored in int4; if not, int8 replaces int4.
        kernel: Whether ``kernels.gemm`` multiplies the weight in a step.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        quantizable: bool = True,
        many_rows: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.quantizable = quantizable
        self.many_rows = many_rows
        self.allow_int4 = True
        self.kernel = False

    def format(self, quantization: Quantization | None) -> Quantization | None:
        """The weight's storage format in a model of ``quantization``; None: floating point."""
        if not self.quantizable or self.weight.shape[1] % _QUANTIZED_MULTIPLE:
            return None
        return "int8" if quantization == "int4" and not self.allow_int4 else quantization

    def kernel_weight(self, x: Tensor) -> KernelWeight | None:
        """The weight for one launch with its neighbours; None if ``forward`` is to be called.

        The many positions of a prompt are left to the BLAS.

        Args:
            x: [..., K].
        """
        step = x.dim() == 2 or x.shape[-2] == 1
        return KernelWeight(self.weight, None, None) if self.kernel and step else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, self.weight, bias)


class PackedLinear(Module):
    """A CPU weight in oneDNN's blocked layout.

    Products of few rows run at memory bandwidth, which the plain layout does not reach. The large
    products of a prompt use the same layout.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.dtype = weight.dtype
        self.register_buffer(
            "packed", torch.ops.mkldnn._reorder_linear_weight(weight, None), persistent=False
        )

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.to(self.dtype)
        single = rows.numel() == rows.shape[-1]
        if single:
            # oneDNN rounds a single row in another order than two and more. Duplicate it: a row's
            # result must not depend on the size of the batch.
            rows = rows.expand(2, *rows.shape[1:]).contiguous()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, bias, "none", [], None)
        return (y[:1] if single else y).to(x.dtype)


class HeadLinear(Module):
    """A CPU weight in bfloat16 that few rows are multiplied with, in float32, at memory speed."""

    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        large = on_huge_pages(weight.shape, weight.dtype).copy_(weight)
        self.register_buffer("weight", large, persistent=False)

    @staticmethod
    def supports(weight: Tensor) -> bool:
        """Whether this class multiplies the weight."""
        return weight.shape[1] % BFLOAT16_MULTIPLE == 0 and cpu_gemm_works(None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        return multiply_bfloat16(x.float(), self.weight).to(x.dtype)


def optimize_linear(linear: Linear, quantization: Quantization | None) -> nn.Module:
    """Convert a loaded layer to the form that its device multiplies fastest.

    Args:
        linear: The layer, with its weight loaded.
        quantization: Format of the model. If any, layers that stay in floating point become
            bfloat16 on a CPU that multiplies bfloat16 natively.

    Returns:
        ``linear`` itself, or a layer that computes the same from a packed or low-bit weight.
    """
    weight = linear.weight.detach()
    if (format := linear.format(quantization)) is not None:
        return low_bit_linear(quantize(weight, format))
    if weight.device.type == "cuda":
        linear.kernel = weight.dtype == torch.bfloat16 and gemm_works(weight.device, None)
    if weight.device.type != "cpu":
        return linear
    # The plain product of a small weight rounds differently for different batch sizes. In float32
    # that is negligible. With low-bit weights, activations are then rounded to bfloat16, which
    # amplifies it; so their models pack small weights too.
    # For many rows, oneDNN is worth it: on AMD's processors it takes less than half of the time of
    # MKL, which PyTorch uses otherwise.
    small = weight.numel() < _PACK_MIN_WEIGHTS and not linear.many_rows
    if quantization is None and small:
        return linear
    if quantization is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        weight = weight.to(torch.bfloat16)
        if not linear.quantizable and HeadLinear.supports(weight):
            return HeadLinear(weight)
    return PackedLinear(weight) if torch._C._has_mkldnn else linear


def stack_linears(linears: Iterable[nn.Module]) -> KernelWeight | None:
    """Concatenate the outputs of several layers in one weight, for a single launch.

    The layers' weights become views of the stacked weight.

    Returns:
        The weight, or None unless the kernel multiplies all layers and they have one format. int4
        is not stacked: its scales are transposed.
    """
    layers, parts = list(linears), []
    for layer in layers:
        if isinstance(layer, Linear) and layer.kernel:
            parts.append(KernelWeight(layer.weight, None, None))
        elif isinstance(layer, KernelLinear) and layer.format != "int4":
            parts.append(KernelWeight(layer.weight, layer.scale, layer.format))
    if len(parts) != len(layers) or len({part.format for part in parts}) != 1:
        return None
    # Concatenate low-bit weights as bytes: not every PyTorch concatenates 8-bit floats.
    format, stored = parts[0].format, parts[0].weight.dtype
    moved = stored if format is None else torch.uint8
    weight = torch.cat([part.weight.view(moved) for part in parts]).view(stored)
    scales = [part.scale for part in parts if part.scale is not None]
    for layer, rows in zip(layers, weight.chunk(len(layers)), strict=True):
        plain = isinstance(layer, Linear)
        layer.weight = nn.Parameter(rows, requires_grad=False) if plain else rows
    return KernelWeight(weight, torch.cat(scales) if scales else None, format)
