"""Linear layers in the forms that devices run best, and the choice between them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from loguru import logger
from torch import Tensor, nn

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels.availability import gemm_works, one_line
from pipecat_personaplex.quantization.weights import GROUP, LowBit, dequantize, int4_codes, quantize

# Below this many weights the call into oneDNN costs more than the product it speeds up.
_PACK_MIN_WEIGHTS = 1 << 17
# The CPU's int8 kernel wants it; with another K it reads past its input. Such weights stay precise
# everywhere, so that a file of low-bit weights serves all devices.
_QUANTIZED_MULTIPLE = 16
# Rows up to which the int8 kernel beats expanding the weight to bfloat16 first.
_INT8_KERNEL_MAX_ROWS = 32
_INT4_MULTIPLE = 16
_INT4_PACK_ROWS = 64
# Weights expanded at a time where no kernel multiplies them as they are.
_EXPANDED_ROWS = 1024
# Positions from which a prompt's product pays for making its inputs 8-bit too.
_SCALED_MM_MIN_POSITIONS = 32
_SCALED_MM_MULTIPLE = 16
_FP8_MAX = 448.0


class KernelWeight(NamedTuple):
    """A weight as ``kernels.gemm`` takes it."""

    weight: Tensor
    scale: Tensor | None
    format: Quantization | None

    def multiply(
        self,
        x: Tensor,
        *,
        alpha: Tensor | None = None,
        eps: float = 0.0,
        gate: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor:
        """See ``kernels.gemm.gemm``."""
        from pipecat_personaplex.kernels.gemm import gemm

        return gemm(x, *self, alpha=alpha, eps=eps, gate=gate, residual=residual)


class Linear(nn.Module):
    """``y = x Wᵀ``, as loaded. ``optimize_linear`` turns it into what the device runs best.

    Args:
        in_features: K.
        out_features: N.
        quantizable: Whether low-bit weights are allowed here; output heads say no.

    Attributes:
        four_bits: Whether the int4 format is allowed here; int8 takes its place where not.
        kernel: Whether ``kernels.gemm`` multiplies the weight in a step.
    """

    def __init__(self, in_features: int, out_features: int, quantizable: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.quantizable = quantizable
        self.four_bits = True
        self.kernel = False

    def format(self, quantization: Quantization | None) -> Quantization | None:
        """The format this layer's weight is kept in; None is floating point."""
        if not self.quantizable or self.weight.shape[1] % _QUANTIZED_MULTIPLE:
            return None
        return "int8" if quantization == "int4" and not self.four_bits else quantization

    def kernel_weight(self, x: Tensor) -> KernelWeight | None:
        """What to call the kernel with for ``x`` [..., K]; None where the plain product is better.

        A prompt's many positions are left to the BLAS.
        """
        step = x.dim() == 2 or x.shape[-2] == 1
        return KernelWeight(self.weight, None, None) if self.kernel and step else None

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, self.weight, bias)


class PackedLinear(nn.Module):
    """A CPU weight in oneDNN's blocked layout.

    A row or two against a packed weight runs at memory bandwidth, which the plain layout's
    kernels miss by far; and the same layout serves the prompt's large products.
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
        alone = rows.numel() == rows.shape[-1]
        if alone:
            # Of all batch sizes only 1 has a kernel that rounds in another order; a row must
            # not depend on whether it has neighbours.
            rows = rows.expand(2, *rows.shape[1:]).contiguous()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, bias, "none", [], None)
        return (y[:1] if alone else y).to(x.dtype)


class Int8Linear(nn.Module):
    """On a CPU: weights of 8 bits with one scale per output, products in bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, low: LowBit):
        super().__init__()
        self.register_buffer("weight", low.weight)
        self.register_buffer("scale", low.scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if rows.shape[0] <= _INT8_KERNEL_MAX_ROWS:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(torch.bfloat16)) * self.scale
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class Int4Linear(nn.Module):
    """On a CPU: weights of 4 bits in PyTorch's packed layout, products in bfloat16."""

    packed: Tensor
    scale_and_zero: Tensor

    def __init__(self, low: LowBit):
        super().__init__()
        packed = torch.empty_like(low.weight)
        for start in range(0, low.weight.shape[0], _INT4_PACK_ROWS):
            rows = slice(start, start + _INT4_PACK_ROWS)
            codes = int4_codes(low.weight[rows]).int()
            packed[rows] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scale = low.scale.t()
        self.register_buffer("packed", packed)
        self.register_buffer("scale_and_zero", torch.stack((scale, torch.zeros_like(scale)), -1))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        rows = F.pad(rows, (0, 2 * self.packed.shape[1] - rows.shape[1]))
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, GROUP, self.scale_and_zero
        )
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class BlockLinear(nn.Module):
    """Any low-bit weight on any device, expanded a block at a time: correct, and slow."""

    weight: Tensor
    scale: Tensor

    def __init__(self, low: LowBit):
        super().__init__()
        self.format: Quantization = low.format
        self.columns = low.columns
        self.register_buffer("weight", low.weight)
        self.register_buffer("scale", low.scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        low = LowBit(self.format, self.columns, self.weight, self.scale)
        y = rows.new_empty(rows.shape[0], self.weight.shape[0])
        # One kernel for all batch sizes: see ``PackedLinear``.
        padded = F.pad(rows, (0, 0, 0, 1)) if rows.shape[0] == 1 else rows
        for start in range(0, self.weight.shape[0], _EXPANDED_ROWS):
            block = slice(start, start + _EXPANDED_ROWS)
            weight = dequantize(low, block).to(torch.bfloat16)
            y[:, block] = F.linear(padded, weight)[: rows.shape[0]]
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class KernelLinear(nn.Module):
    """A low-bit weight that ``kernels.gemm`` expands in registers, products in bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, low: LowBit):
        super().__init__()
        from pipecat_personaplex.kernels.gemm import kernel_scale

        self.format: Quantization = low.format
        self.register_buffer("weight", low.weight)
        self.register_buffer("scale", kernel_scale(low))

    def _as_8_bit(self, x: Tensor) -> bool:
        """Whether a prompt's product takes the tensor cores' 8-bit floats."""
        return (
            self.format == "fp8"
            and x.dim() > 2
            and x.shape[-2] >= _SCALED_MM_MIN_POSITIONS
            and self.weight.shape[0] % _SCALED_MM_MULTIPLE == 0
            and self.weight.shape[1] % _SCALED_MM_MULTIPLE == 0
            and scaled_mm_works(self.weight.device)
        )

    def kernel_weight(self, x: Tensor) -> KernelWeight | None:
        """What to call the kernel with for ``x`` [..., K]; None where ``forward`` has better."""
        if x.dtype != torch.bfloat16 or self._as_8_bit(x):
            return None
        return KernelWeight(self.weight, self.scale, self.format)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.to(torch.bfloat16)
        if self._as_8_bit(x):
            return scaled_mm(rows, self.weight, self.scale).to(x.dtype)
        return KernelWeight(self.weight, self.scale, self.format).multiply(rows).to(x.dtype)


def scaled_mm(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply with both sides in 8-bit floats, each row with its scale.

    Args:
        x: bfloat16 [..., K].
        weight: float8_e4m3fn [N, K].
        scale: float32 [N].

    Returns:
        bfloat16 [..., N].
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    row_scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / _FP8_MAX
    codes = (rows / row_scale).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    y = torch._scaled_mm(
        codes, weight.t(), scale_a=row_scale, scale_b=scale[None], out_dtype=torch.bfloat16
    )
    return y.view(*x.shape[:-1], -1)


@lru_cache
def scaled_mm_works(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floats row by row; a small product tells."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    try:
        x = torch.eye(32, device=device, dtype=torch.bfloat16)
        y = scaled_mm(x, x.to(torch.float8_e4m3fn), torch.full((32,), 2.0, device=device))
        if torch.equal(y, 2 * x):
            return True
        reason = "the product is wrong"
    except RuntimeError as error:
        reason = one_line(error)
    logger.warning("prompts are multiplied in bfloat16: scaled_mm on {}: {}", device, reason)
    return False


def low_bit_linear(low: LowBit) -> nn.Module:
    """The layer that its device runs best for a low-bit weight, which it takes over."""
    device = low.weight.device
    if device.type == "cuda" and gemm_works(device, low.format):
        return KernelLinear(low)
    if device.type == "cpu" and low.format == "int8":
        return Int8Linear(low)
    if device.type == "cpu" and low.format == "int4" and low.weight.shape[0] % _INT4_MULTIPLE == 0:
        return Int4Linear(low)
    return BlockLinear(low)


def optimize_linear(linear: Linear, quantization: Quantization | None) -> nn.Module:
    """Choose the form in which a loaded weight is kept.

    Args:
        linear: The layer, its weight loaded.
        quantization: Of the model. With it, layers that must stay precise are kept in bfloat16
            where the CPU multiplies it natively.

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
    # The plain product of a small weight rounds differently with the batch's size. That is noise
    # in float32, but not where activations are rounded to bfloat16 next, as for low-bit weights.
    if quantization is None and weight.numel() < _PACK_MIN_WEIGHTS:
        return linear
    if quantization is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        weight = weight.to(torch.bfloat16)
    return PackedLinear(weight) if torch._C._has_mkldnn else linear


def stack_linears(linears: Iterable[nn.Module]) -> KernelWeight | None:
    """One weight with the outputs of several layers one after the other, for a single launch.

    The layers are left with views of it.

    Returns:
        None unless the kernel multiplies them all, and as one.
    """
    layers, parts = list(linears), []
    for layer in layers:
        if isinstance(layer, Linear) and layer.kernel:
            parts.append(KernelWeight(layer.weight, None, None))
        elif isinstance(layer, KernelLinear) and layer.format != "int4":
            parts.append(KernelWeight(layer.weight, layer.scale, layer.format))
    format = parts[0].format if len(parts) == len(layers) else "int4"
    if format == "int4" or any(part.format != format for part in parts):
        return None
    # Low-bit weights go as bytes: not every PyTorch joins 8-bit floats.
    kept = parts[0].weight.dtype
    moved = kept if format is None else torch.uint8
    weight = torch.cat([part.weight.view(moved) for part in parts]).view(kept)
    scales = [part.scale for part in parts if part.scale is not None]
    for layer, rows in zip(layers, weight.chunk(len(layers)), strict=True):
        whole = isinstance(layer, Linear)
        layer.weight = nn.Parameter(rows, requires_grad=False) if whole else rows
    return KernelWeight(weight, torch.cat(scales) if scales else None, format)
