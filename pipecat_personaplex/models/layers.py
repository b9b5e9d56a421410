"""Linear layers in the forms the engine runs, and the norms and MLPs around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A slice names a run of slots without a copy, an index tensor any set of them.
Rows = slice | Tensor

# Below this many weights the call into oneDNN costs more than the product it speeds up.
_PACK_MIN_WEIGHTS = 1 << 17
# The int8 kernel's; with another K it reads past its input.
_INT8_MULTIPLE = 16
# Rows up to which the int8 kernel beats expanding the weight to bfloat16 first.
_INT8_KERNEL_MAX_ROWS = 32
_QUANTIZE_ROWS = 64


class Linear(nn.Module):
    """``y = x Wᵀ``, as loaded. ``optimize_linear`` turns it into what the device runs best.

    Args:
        in_features: K.
        out_features: N.
        quantizable: Whether low-bit weights are allowed here; output heads say no.
    """

    def __init__(self, in_features: int, out_features: int, quantizable: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.quantizable = quantizable

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return F.linear(x, self.weight)


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

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.to(self.dtype)
        alone = rows.numel() == rows.shape[-1]
        if alone:
            # Of all batch sizes only 1 has a kernel that rounds in another order; a row must
            # not depend on whether it has neighbours.
            rows = rows.expand(2, *rows.shape[1:]).contiguous()
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.packed, None, "none", [], None)
        return (y[:1] if alone else y).to(x.dtype)


class Int8Linear(nn.Module):
    """Weights of 8 bits with one scale per output, products in bfloat16."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        quantized = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(weight.shape[0], dtype=torch.bfloat16)
        # A block of rows at a time: no float copy of the whole weight, and the cache is kept.
        for start in range(0, weight.shape[0], _QUANTIZE_ROWS):
            block = slice(start, start + _QUANTIZE_ROWS)
            rows = weight[block].float()
            scales[block] = rows.abs().amax(dim=1).clamp(min=1e-12) / 127
            # Divided by the scale as it is kept: rounding it to bfloat16 then costs nothing.
            quantized[block] = (rows / scales[block, None].float()).round_().clamp_(-127, 127)
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scales)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if rows.shape[0] <= _INT8_KERNEL_MAX_ROWS:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(torch.bfloat16)) * self.scale
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def optimize_linear(linear: Linear, quantization: str | None) -> nn.Module:
    """Choose the form in which a loaded weight is kept.

    Args:
        linear: The layer, its weight loaded.
        quantization: ``"int8"`` or None. With it, layers that must stay precise are kept in
            bfloat16 where the CPU multiplies it natively.

    Returns:
        ``linear`` itself, or a layer that computes the same from a packed or 8-bit weight.
    """
    weight = linear.weight.detach()
    if weight.device.type != "cpu":
        return linear
    # The plain product of a small weight rounds differently with the batch's size. That is noise
    # in float32, but not where activations are rounded to bfloat16 next, as for int8.
    if quantization is None and weight.numel() < _PACK_MIN_WEIGHTS:
        return linear
    if quantization == "int8":
        if linear.quantizable and weight.shape[1] % _INT8_MULTIPLE == 0:
            return Int8Linear(weight)
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            weight = weight.to(torch.bfloat16)
    return PackedLinear(weight) if torch._C._has_mkldnn else linear


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


class GatedMLP(nn.Module):
    """SiLU-gated MLP; ``linear_in`` gives [gate; up]."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear_in = Linear(dim, 2 * hidden)
        self.linear_out = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        gate, up = self.linear_in(x).chunk(2, dim=-1)
        y: Tensor = self.linear_out(F.silu(gate).mul_(up))
        return y
