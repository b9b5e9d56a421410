"""Linear layers with low-bit weights: one class for each way in which a device multiplies them.

A format's storage and its conversion in both directions are in ``quantization.weights``.
``low_bit_linear`` chooses the class by the weight's format and device:

| class           | formats         | device | product                                          |
|-----------------|-----------------|--------|--------------------------------------------------|
| KernelLinear    | int8, fp8, int4 | CUDA   | the GEMM kernel expands the weight in registers  |
| CpuKernelLinear | int8, int4      | CPU    | kernels that are compiled for the processor      |
| Int8Linear      | int8            | CPU    | PyTorch's int8 kernel                            |
| Int4Linear      | int4            | CPU    | PyTorch's int4 kernel, in its packed layout      |
| BlockLinear     | int8, fp8, int4 | any    | blocks of rows are expanded to bfloat16; slow    |

CpuKernelLinear quantises each row of the input and multiplies in integers, KernelLinear multiplies
long prompts with fp8 weights in 8-bit floats; all else multiplies in bfloat16. All return the
input's type.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels import cpu_linear
from pipecat_personaplex.kernels.availability import cpu_gemm_works, gemm_works, probe
from pipecat_personaplex.kernels.cpu_linear import CpuWeight
from pipecat_personaplex.models.kernel_weight import KernelWeight
from pipecat_personaplex.models.module import Module
from pipecat_personaplex.quantization.fp8 import FP8, FP8_CAPABILITY, FP8_MAX
from pipecat_personaplex.quantization.weights import GROUP, LowBit, dequantize, int4_codes

# Rows up to which the int8 kernel is faster than expanding the weight to bfloat16 first.
_INT8_KERNEL_MAX_ROWS = 32
# PyTorch's int4 kernel takes multiples of this many outputs.
_INT4_MULTIPLE = 16
# Rows that are packed at once, to bound the memory of their unpacked codes.
_INT4_PACK_ROWS = 64
# Rows of a weight that BlockLinear expands at once.
_EXPANDED_ROWS = 1024
# Positions of a prompt from which a product with 8-bit inputs repays their conversion.
_SCALED_MM_MIN_POSITIONS = 32
_SCALED_MM_MULTIPLE = 16


class CpuKernelLinear(Module):
    """On a CPU: int8 and int4 weights in the layout of ``kernels.cpu_linear``."""

    def __init__(self, low: LowBit):
        super().__init__()
        self._weight = cpu_linear.pack(low)
        for name in ("weight", "scale", "sums"):
            self.register_buffer(name, getattr(self._weight, name))

    @staticmethod
    def supports(low: LowBit) -> bool:
        """Whether this class can multiply by this weight."""
        return low.weight.device.type == "cpu" and cpu_gemm_works(low.format)

    def kernel_weight(self, x: Tensor) -> CpuWeight | None:
        """The weight for one call with norm, gate and residual; None if ``x`` is not float32."""
        return self._weight if x.dtype == torch.float32 else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        return self._weight.multiply(x.float()).to(x.dtype)


class Int8Linear(Module):
    """On a CPU: int8 weights with one scale per output."""

    weight: Tensor
    scale: Tensor

    def __init__(self, low: LowBit):
        super().__init__()
        self.register_buffer("weight", low.weight)
        self.register_buffer("scale", low.scale)

    @staticmethod
    def supports(low: LowBit) -> bool:
        """Whether this class can multiply by this weight."""
        return low.weight.device.type == "cpu" and low.format == "int8"

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        if rows.shape[0] <= _INT8_KERNEL_MAX_ROWS:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = F.linear(rows, self.weight.to(torch.bfloat16)) * self.scale
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class Int4Linear(Module):
    """On a CPU: int4 weights in PyTorch's packed layout."""

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
        # [P / 128, N, 2]: scale and zero point of each group.
        self.register_buffer("scale_and_zero", torch.stack((scale, torch.zeros_like(scale)), -1))

    @staticmethod
    def supports(low: LowBit) -> bool:
        """Whether this class can multiply by this weight."""
        return (
            low.weight.device.type == "cpu"
            and low.format == "int4"
            and low.weight.shape[0] % _INT4_MULTIPLE == 0
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        rows = F.pad(rows, (0, 2 * self.packed.shape[1] - rows.shape[1]))  # K -> P
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, GROUP, self.scale_and_zero
        )
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class BlockLinear(Module):
    """Any format on any device: expands a block of rows at a time. Correct but slow."""

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
        # PyTorch has another kernel for a single row, which rounds differently; see PackedLinear.
        padded = F.pad(rows, (0, 0, 0, 1)) if rows.shape[0] == 1 else rows
        for start in range(0, self.weight.shape[0], _EXPANDED_ROWS):
            block = slice(start, start + _EXPANDED_ROWS)
            weight = dequantize(low, block).to(torch.bfloat16)
            y[:, block] = F.linear(padded, weight)[: rows.shape[0]]
        return y.to(x.dtype).view(*x.shape[:-1], -1)


class KernelLinear(Module):
    """On CUDA: ``kernels.gemm`` expands the weight in registers."""

    weight: Tensor
    scale: Tensor

    def __init__(self, low: LowBit):
        super().__init__()
        from pipecat_personaplex.kernels.gemm import kernel_scale

        self.format: Quantization = low.format
        self.register_buffer("weight", low.weight)
        self.register_buffer("scale", kernel_scale(low))

    @staticmethod
    def supports(low: LowBit) -> bool:
        """Whether this class can multiply by this weight."""
        return low.weight.device.type == "cuda" and gemm_works(low.weight.device, low.format)

    def _multiplies_in_fp8(self, x: Tensor) -> bool:
        """Whether ``x`` is a prompt that the tensor cores multiply in 8-bit floats."""
        return (
            self.format == "fp8"
            and x.dim() > 2
            and x.shape[-2] >= _SCALED_MM_MIN_POSITIONS
            and self.weight.shape[0] % _SCALED_MM_MULTIPLE == 0
            and self.weight.shape[1] % _SCALED_MM_MULTIPLE == 0
            and scaled_mm_works(self.weight.device)
        )

    def kernel_weight(self, x: Tensor) -> KernelWeight | None:
        """The weight for one launch with its neighbours; None if ``forward`` is faster for ``x``.

        Args:
            x: [..., K].
        """
        if x.dtype != torch.bfloat16 or self._multiplies_in_fp8(x):
            return None
        return KernelWeight(self.weight, self.scale, self.format)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in ``x``'s dtype."""
        rows = x.to(torch.bfloat16)
        if self._multiplies_in_fp8(x):
            return scaled_mm(rows, self.weight, self.scale).to(x.dtype)
        return KernelWeight(self.weight, self.scale, self.format).multiply(rows).to(x.dtype)


def low_bit_linear(low: LowBit) -> nn.Module:
    """The fastest layer for a low-bit weight on its device.

    The layer keeps ``low``'s tensors; only ``CpuKernelLinear`` and ``Int4Linear`` copy them.
    """
    for layer in (KernelLinear, CpuKernelLinear, Int8Linear, Int4Linear):
        if layer.supports(low):
            return layer(low)
    return BlockLinear(low)


def scaled_mm(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply in 8-bit floats, with one scale for each row of both sides.

    Args:
        x: bfloat16 [..., K].
        weight: float8_e4m3fn [N, K].
        scale: float32 [N].

    Returns:
        bfloat16 [..., N].
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    row_scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / FP8_MAX
    codes = (rows / row_scale).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
    y = torch._scaled_mm(
        codes, weight.t(), scale_a=row_scale, scale_b=scale[None], out_dtype=torch.bfloat16
    )
    return y.view(*x.shape[:-1], -1)


def scaled_mm_works(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floats with one scale per row."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return False

    def check() -> None:
        x = torch.eye(32, device=device, dtype=torch.bfloat16)
        y = scaled_mm(x, x.to(FP8), torch.full((32,), 2.0, device=device))
        if not torch.equal(y, 2 * x):
            raise RuntimeError("the product is wrong")

    return probe(
        "the row-scaled fp8 product (torch._scaled_mm)",
        device,
        check,
        fallback="prompts are multiplied in bfloat16",
    )
