"""y = x Wᵀ for a few rows of x, with W in bfloat16 or low-bit and expanded in registers.

A step of the model is bound by reading its weights once, so each program streams some rows of W
along K and pays for nothing else: the RMS norm before a product (its factor is applied to the sums,
``y = rstd · ((x · alpha) Wᵀ)``), the gate and the residual after it happen in the same launch.

A row of x never meets another, and in a step K is summed by the same instructions in the same
order whatever the batch: what a session says does not depend on its neighbours. (Past 16 rows the
norm may group its sum of squares otherwise, a float32 rounding.)
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.quantization.weights import GROUP, PAIR, LowBit, dequantize, quantize

# The interpreter cannot multiply bfloat16, and cuts floats off where it should round them to it:
# there tiles are widened, which changes no product.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_PLAIN, _ROW_SCALED, _INT4 = 0, 1, 2
_KINDS = {None: _PLAIN, "int8": _ROW_SCALED, "fp8": _ROW_SCALED, "int4": _INT4}

# tl.dot needs sixteen rows; where there are fewer, the others are masked off. From 64 rows on,
# Hopper and Blackwell have other instructions, which may round otherwise: those are for prompts.
_STEP_ROWS = (16, 32)
_PROMPT_ROWS = (*_STEP_ROWS, 64)
# Programs that fill a large GPU: with few rows, reading W wants several a multiprocessor; with
# many, each program reads all of x once more.
_PROGRAMS_FEW_ROWS, _PROGRAMS_MANY_ROWS = 256, 128
_BLOCK_OUTPUTS = (64, 32, 16)
_BLOCK_INNER = 128
_BLOCK_INNER_BYTES = 256
# What loads in flight may take of a multiprocessor's shared memory, of which the smallest have
# 99 KiB.
_SHARED_BYTES = 88 << 10
_MAX_STAGES = 5


class _Plan(NamedTuple):
    rows: int
    outputs: int
    inner: int
    stages: int
    warps: int


def _plan(
    rows: int, outputs: int, kind: int, itemsize: int, tiles: int, prompt: bool = False
) -> _Plan:
    """Block sizes by plain arithmetic, so that start-up and graph capture hold no surprises."""
    sizes = _PROMPT_ROWS if prompt else _STEP_ROWS
    block_rows = next((size for size in sizes if rows <= size), sizes[-1])
    few = block_rows == sizes[0]
    wanted = _PROGRAMS_FEW_ROWS if few else _PROGRAMS_MANY_ROWS
    programs = {size: -(-rows // block_rows) * -(-outputs // size) for size in _BLOCK_OUTPUTS}
    # The compiler takes int4's two products for a chain, whose warps share rows and not outputs
    # where a block has no more outputs than rows: they would all do the same.
    least = 2 * sizes[0] if kind == _INT4 else 0
    blocks = [size for size in _BLOCK_OUTPUTS if size >= least]
    block = next((size for size in blocks if programs[size] >= wanted), blocks[-1])
    if kind == _INT4:
        inner, row_bytes = PAIR, GROUP
    else:
        inner = max(_BLOCK_INNER, _BLOCK_INNER_BYTES // itemsize) if few else _BLOCK_INNER
        row_bytes = inner * itemsize
    stage = tiles * block * row_bytes + block_rows * inner * 2
    stages = min(_MAX_STAGES, max(2, _SHARED_BYTES // stage))
    # An instruction takes eight outputs: more warps than that would repeat each other's work.
    return _Plan(block_rows, block, inner, stages, min(4, block // 8))


@triton.jit  # type: ignore[untyped-decorator]
def _dot(x, w, total, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total`` + x [M, K] · w [N, K]ᵀ."""
    if WIDE:
        wide = tl.trans(w.to(tl.float32))
        return tl.dot(x.to(tl.float32), wide, total, input_precision="ieee")
    return tl.dot(x, tl.trans(w), total)


@triton.jit  # type: ignore[untyped-decorator]
def _narrow(w, DTYPE: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Numbers of 8 bits or less in the products' type, which holds them exactly."""
    if WIDE:
        return w.to(tl.float32)
    return w.to(DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def _input(  # type: ignore[no-untyped-def]
    x,
    alpha,
    squares,
    k,
    rows_there,
    INNER: tl.constexpr,
    NORM: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """A tile of x, times alpha, and the running sums of its squares."""
    mask = rows_there[:, None]
    if not EVEN:
        mask = mask & (k < INNER)[None, :]
    tile = tl.load(x + k[None, :], mask=mask, other=0.0)
    if NORM:
        wide = tile.to(tl.float32)
        squares += tl.sum(wide * wide, axis=1)
        if EVEN:
            factor = tl.load(alpha + k)
        else:
            factor = tl.load(alpha + k, mask=k < INNER, other=0.0)
        wide *= factor.to(tl.float32)[None, :]
        tile = wide if WIDE else wide.to(tile.dtype)
    return tile, squares


@triton.jit  # type: ignore[untyped-decorator]
def _weights(w, k, outputs_there, INNER: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    mask = outputs_there[:, None]
    if not EVEN:
        mask = mask & (k < INNER)[None, :]
    return tl.load(w + k[None, :], mask=mask, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _four_bits(code, DTYPE: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Codes 0..15, which stand for -8..7, in the products' type."""
    if WIDE:
        return code.to(tl.float32) - 8.0
    # The last bits of bfloat16's 128 count ones: no conversion, and a subtraction that is exact.
    return (code.to(tl.uint16) | 0x4300).to(DTYPE, bitcast=True) - 136.0


@triton.jit
def _pair_scales(scale, pair, n, outputs_there, scale_stride):  # type: ignore[no-untyped-def]
    """The scales of two groups, [N] each."""
    at = scale + (2 * pair) * scale_stride + n
    low = tl.load(at, mask=outputs_there, other=0.0)
    return low, tl.load(at + scale_stride, mask=outputs_there, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _int4_pair(  # type: ignore[no-untyped-def]
    low_x, high_x, w, low_scale, high_scale, outputs_there, byte, total, WIDE: tl.constexpr
):
    """Two groups' share: their products, each times its group's scale."""
    codes = tl.load(w + byte[None, :], mask=outputs_there[:, None], other=0)
    low = _four_bits(codes & 15, low_x.dtype, WIDE)
    high = _four_bits(codes >> 4, low_x.dtype, WIDE)
    zero = tl.zeros_like(total)
    total += _dot(low_x, low, zero, WIDE) * low_scale.to(tl.float32)[None, :]
    return total + _dot(high_x, high, zero, WIDE) * high_scale.to(tl.float32)[None, :]


# One kernel for all batches of a block size: rows are no reason to compile again.
@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def _gemm(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale,
    alpha,
    residual,
    y,
    rows,
    outputs,
    x_stride,
    weight_stride,
    scale_stride,
    eps,
    INNER: tl.constexpr,
    KIND: tl.constexpr,
    NORM: tl.constexpr,
    GATE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_there = m < rows
    outputs_there = n < outputs
    x_rows = x + m.to(tl.int64)[:, None] * x_stride
    # With a gate, W's first half is the gate's and the second what it gates.
    gated = n + outputs
    w_rows = weight + n.to(tl.int64)[:, None] * weight_stride
    w_gated = weight + gated.to(tl.int64)[:, None] * weight_stride

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    if KIND == 2:
        # Scales come an iteration ahead: no other load waits for them, and few warps wait at once.
        next_low, next_high = _pair_scales(scale, 0, n, outputs_there, scale_stride)
        next_low_gated, next_high_gated = next_low, next_high
        if GATE:
            next_low_gated, next_high_gated = _pair_scales(
                scale, 0, gated, outputs_there, scale_stride
            )
    for start in range(0, INNER, BLOCK_K):
        if KIND == 2:
            low_scale, high_scale = next_low, next_high
            low_gated, high_gated = next_low_gated, next_high_gated
            following = tl.minimum(start + BLOCK_K, INNER - 1) // BLOCK_K
            next_low, next_high = _pair_scales(scale, following, n, outputs_there, scale_stride)
            if GATE:
                next_low_gated, next_high_gated = _pair_scales(
                    scale, following, gated, outputs_there, scale_stride
                )
            half = tl.arange(0, BLOCK_K // 2)
            k = start + half
            low, squares = _input(x_rows, alpha, squares, k, rows_there, INNER, NORM, EVEN, WIDE)
            k += BLOCK_K // 2
            high, squares = _input(x_rows, alpha, squares, k, rows_there, INNER, NORM, EVEN, WIDE)
            byte = start // 2 + half
            total = _int4_pair(
                low, high, w_rows, low_scale, high_scale, outputs_there, byte, total, WIDE
            )
            if GATE:
                up = _int4_pair(
                    low, high, w_gated, low_gated, high_gated, outputs_there, byte, up, WIDE
                )
        else:
            k = start + tl.arange(0, BLOCK_K)
            tile, squares = _input(x_rows, alpha, squares, k, rows_there, INNER, NORM, EVEN, WIDE)
            w = _weights(w_rows, k, outputs_there, INNER, EVEN)
            total = _dot(tile, _narrow(w, tile.dtype, WIDE), total, WIDE)
            if GATE:
                w = _weights(w_gated, k, outputs_there, INNER, EVEN)
                up = _dot(tile, _narrow(w, tile.dtype, WIDE), up, WIDE)

    if KIND == 1:
        total *= tl.load(scale + n, mask=outputs_there, other=0.0).to(tl.float32)[None, :]
        if GATE:
            up *= tl.load(scale + gated, mask=outputs_there, other=0.0).to(tl.float32)[None, :]
    if NORM:
        rstd = 1.0 / tl.sqrt(squares / INNER + eps)
        total *= rstd[:, None]
        up *= rstd[:, None]
    if GATE:
        small = tl.exp(-tl.abs(total))
        total *= tl.where(total > 0, 1.0, small) / (1.0 + small) * up
    place = m.to(tl.int64)[:, None] * outputs + n[None, :]
    there = rows_there[:, None] & outputs_there[None, :]
    if RESIDUAL:
        total += tl.load(residual + place, mask=there, other=0.0).to(tl.float32)
    tl.store(y + place, total.to(y.dtype.element_ty), mask=there)


def gemm(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    format: Quantization | None = None,
    *,
    alpha: Tensor | None = None,
    eps: float = 0.0,
    gate: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Multiply, and do what comes before and after, in one launch.

    Args:
        x: [..., K], bfloat16; float32 only with a weight of that type. [B, T, K] with T > 1 is a
            prompt's.
        weight: [N, K] of ``x``'s type, or as ``formats`` has it.
        scale: As ``formats`` has it, but of int4 transposed: [P / 128, N], contiguous.
        format: Of the weight; None for ``x``'s type.
        alpha: An RMS norm's weight, [K]: ``x`` is normed first.
        eps: The norm's.
        gate: The outputs are [gate; up], and ``silu(gate) * up`` is wanted.
        residual: Added at the end, [..., N], or with ``gate`` [..., N / 2].

    Returns:
        [..., N], or with ``gate`` [..., N / 2], in ``x``'s type.
    """
    inner = x.shape[-1]
    flat = x.reshape(-1, inner)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    rows = flat.shape[0]
    outputs = weight.shape[0] // (2 if gate else 1)
    y = x.new_empty(*x.shape[:-1], outputs)
    if y.numel() == 0:
        return y
    kind = _KINDS[format]
    prompt = x.dim() > 2 and x.shape[-2] > 1
    plan = _plan(rows, outputs, kind, weight.element_size(), 2 if gate else 1, prompt)
    grid = (-(-rows // plan.rows), -(-outputs // plan.outputs))
    # Triton launches on the current device, whatever its arguments are on.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _gemm[grid](
            flat,
            weight,
            weight if scale is None else scale,
            weight if alpha is None else alpha,
            y if residual is None else residual.contiguous(),
            y,
            rows,
            outputs,
            flat.stride(0),
            weight.stride(0),
            weight.shape[0],
            eps,
            INNER=inner,
            KIND=kind,
            NORM=alpha is not None,
            GATE=gate,
            RESIDUAL=residual is not None,
            EVEN=inner % plan.inner == 0,
            WIDE=_INTERPRETED or x.dtype == torch.float32,
            BLOCK_M=plan.rows,
            BLOCK_N=plan.outputs,
            BLOCK_K=plan.inner,
            num_warps=plan.warps,
            num_stages=plan.stages,
        )
    return y


def check(device: torch.device, format: Quantization | None) -> None:
    """Compare one small product with PyTorch's.

    Raises:
        RuntimeError: They differ. Whatever else it raises says that kernels do not run here.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    outputs, inner, eps = 64, 2 * PAIR, 1e-6
    x, alpha, weight = noise(3, inner), noise(inner), noise(2 * outputs, inner)
    kept, scale, wide = weight, None, weight.float()
    if format is not None:
        low = quantize(weight, format)
        kept, scale, wide = low.weight, kernel_scale(low), dequantize(low)
    residual = noise(3, outputs)
    y = gemm(x, kept, scale, format, alpha=alpha, eps=eps, gate=True, residual=residual)
    normed = torch.nn.functional.rms_norm(x.float(), (inner,), alpha.float(), eps)
    gated, up = (normed @ wide.T).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gated) * up + residual.float()
    error = float((y.float() - expected).norm() / expected.norm())
    if not error < 0.02:
        raise RuntimeError(f"the product is off by {error:.2%}")


def kernel_scale(low: LowBit) -> Tensor:
    """A weight's scale as ``gemm`` takes it."""
    return low.scale.t().contiguous() if low.format == "int4" else low.scale
