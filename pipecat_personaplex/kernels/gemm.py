"""y = x Wᵀ for a few rows of x, with W in bfloat16 or in a low-bit format, expanded in registers.

A step of the model is bound by the memory bandwidth that reads the weights once. So each program
streams some rows of W along K, and everything around the product costs no further pass: the RMS
norm before it (its factor is applied to the sums, ``y = rstd * ((x * alpha) Wᵀ)``), the gate and
the residual after it are part of the same launch.

Rows of x never mix, and a step sums K with the same instructions in the same order for every batch
size, so a session's tokens do not depend on the other sessions. (Past 16 rows the norm may group
its sum of squares differently, which is a float32 rounding.)
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

# The interpreter cannot multiply bfloat16 and truncates where it should round to it. It gets
# float32 tiles, whose products are the same numbers.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# How the kernel expands a weight: not at all, one scale per output, or int4 groups.
_PLAIN, _ROW_SCALED, _INT4 = 0, 1, 2
_KINDS: dict[Quantization | None, int] = {
    None: _PLAIN,
    "int8": _ROW_SCALED,
    "fp8": _ROW_SCALED,
    "int4": _INT4,
}

# tl.dot needs at least sixteen rows; missing ones are masked. From 64 rows on, Hopper and Blackwell
# use other instructions, which may round differently: only prompts use them.
_STEP_ROWS = (16, 32)
_PROMPT_ROWS = (*_STEP_ROWS, 64)
# Programs that fill a large GPU. With few rows, several programs per multiprocessor read W fastest;
# with many rows, each additional program reads all of x once more.
_PROGRAMS_FEW_ROWS, _PROGRAMS_MANY_ROWS = 256, 128
_BLOCK_OUTPUTS = (64, 32, 16)
_BLOCK_INNER = 128
_BLOCK_INNER_BYTES = 256
# Shared memory for loads in flight. The smallest multiprocessors have 99 KiB.
_SHARED_BYTES = 88 << 10
_MAX_STAGES = 5


class _GemmPlan(NamedTuple):
    """Block sizes of a launch: rows of x, rows of W, columns of both; load stages; warps."""

    rows: int
    outputs: int
    inner: int
    stages: int
    warps: int


def _plan(
    rows: int, outputs: int, kind: int, itemsize: int, tiles: int, prompt: bool = False
) -> _GemmPlan:
    """Choose block sizes by arithmetic, so that nothing is tuned at start-up or in graph capture.

    ``outputs`` counts those of one half with a gate; ``tiles`` is how many tiles of W a program
    reads at once, two with a gate; ``prompt`` allows instructions that round differently.
    """
    sizes = _PROMPT_ROWS if prompt else _STEP_ROWS
    block_rows = next((size for size in sizes if rows <= size), sizes[-1])
    few = block_rows == sizes[0]
    wanted = _PROGRAMS_FEW_ROWS if few else _PROGRAMS_MANY_ROWS
    programs = {size: -(-rows // block_rows) * -(-outputs // size) for size in _BLOCK_OUTPUTS}
    # The compiler treats int4's two products as a chain and divides rows, not outputs, among warps
    # if a block has no more outputs than rows. All warps would then repeat the same work.
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
    # One instruction computes eight outputs; more warps would repeat each other's work.
    return _GemmPlan(block_rows, block, inner, stages, min(4, block // 8))


@triton.jit  # type: ignore[untyped-decorator]
def _dot(x, w, total, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """``total`` [M, N] + x [M, K] · w [N, K]ᵀ, accumulated in float32."""
    if WIDE:
        wide = tl.trans(w.to(tl.float32))
        return tl.dot(x.to(tl.float32), wide, total, input_precision="ieee")
    return tl.dot(x, tl.trans(w), total)


@triton.jit  # type: ignore[untyped-decorator]
def _narrow(w, DTYPE: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Convert numbers of 8 bits or less to the product's type, which represents them exactly."""
    if WIDE:
        return w.to(tl.float32)
    return w.to(DTYPE)


@triton.jit  # type: ignore[untyped-decorator]
def _input(  # type: ignore[no-untyped-def]
    x,
    alpha,
    squares,
    k,
    row_mask,
    INNER: tl.constexpr,
    NORM: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Load a tile of x [M, K], times alpha; add to the running sums of its squares [M]."""
    mask = row_mask[:, None]
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
def _weights(w, k, output_mask, INNER: tl.constexpr, EVEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load a tile of W [N, K]."""
    mask = output_mask[:, None]
    if not EVEN:
        mask = mask & (k < INNER)[None, :]
    return tl.load(w + k[None, :], mask=mask, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _int4_values(code, DTYPE: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Convert codes 0..15 to their values -8..7 in the product's type."""
    if WIDE:
        return code.to(tl.float32) - 8.0
    # 0x4300 is bfloat16's 128, whose last mantissa bit counts ones: OR-ing the code in gives
    # 128 + code without a conversion, and subtracting 136 is exact.
    return (code.to(tl.uint16) | 0x4300).to(DTYPE, bitcast=True) - 136.0


@triton.jit
def _pair_scales(scale, pair, n, output_mask, scale_stride):  # type: ignore[no-untyped-def]
    """Load the scales of the two groups of a pair, [N] each."""
    pointer = scale + (2 * pair) * scale_stride + n
    low = tl.load(pointer, mask=output_mask, other=0.0)
    return low, tl.load(pointer + scale_stride, mask=output_mask, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _int4_pair(  # type: ignore[no-untyped-def]
    low_x, high_x, w, low_scale, high_scale, output_mask, byte, total, WIDE: tl.constexpr
):
    """Add a pair's product to ``total`` [M, N]: each group's product times its group's scale."""
    # [N, 128] bytes: low halves are the first group's codes, high halves the second's.
    codes = tl.load(w + byte[None, :], mask=output_mask[:, None], other=0)
    low = _int4_values(codes & 15, low_x.dtype, WIDE)
    high = _int4_values(codes >> 4, low_x.dtype, WIDE)
    zero = tl.zeros_like(total)
    total += _dot(low_x, low, zero, WIDE) * low_scale.to(tl.float32)[None, :]
    return total + _dot(high_x, high, zero, WIDE) * high_scale.to(tl.float32)[None, :]


# ``rows`` is not specialised: one compiled kernel serves all batches of a block size.
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
    """One program for each block of x's rows and block of outputs: y [BLOCK_M, BLOCK_N].

    KIND is ``_PLAIN``, ``_ROW_SCALED`` or ``_INT4``. EVEN: BLOCK_K divides INNER, so that loads
    need no mask along K. WIDE: products in float32.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask = m < rows
    output_mask = n < outputs
    x_rows = x + m.to(tl.int64)[:, None] * x_stride
    # With a gate, the first half of W's rows computes the gate, the second half the gated input
    # ("up"). A program computes the same outputs of both.
    n_up = n + outputs
    w_rows = weight + n.to(tl.int64)[:, None] * weight_stride
    w_up_rows = weight + n_up.to(tl.int64)[:, None] * weight_stride

    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    if KIND == 2:
        # Load scales one iteration ahead, so that the product does not wait for them.
        next_low, next_high = _pair_scales(scale, 0, n, output_mask, scale_stride)
        next_low_up, next_high_up = next_low, next_high
        if GATE:
            next_low_up, next_high_up = _pair_scales(scale, 0, n_up, output_mask, scale_stride)
    for start in range(0, INNER, BLOCK_K):
        if KIND == 2:
            low_scale, high_scale = next_low, next_high
            low_up, high_up = next_low_up, next_high_up
            following = tl.minimum(start + BLOCK_K, INNER - 1) // BLOCK_K
            next_low, next_high = _pair_scales(scale, following, n, output_mask, scale_stride)
            if GATE:
                next_low_up, next_high_up = _pair_scales(
                    scale, following, n_up, output_mask, scale_stride
                )
            half = tl.arange(0, BLOCK_K // 2)
            k = start + half
            low, squares = _input(x_rows, alpha, squares, k, row_mask, INNER, NORM, EVEN, WIDE)
            k += BLOCK_K // 2
            high, squares = _input(x_rows, alpha, squares, k, row_mask, INNER, NORM, EVEN, WIDE)
            byte = start // 2 + half
            total = _int4_pair(
                low, high, w_rows, low_scale, high_scale, output_mask, byte, total, WIDE
            )
            if GATE:
                up = _int4_pair(low, high, w_up_rows, low_up, high_up, output_mask, byte, up, WIDE)
        else:
            k = start + tl.arange(0, BLOCK_K)
            tile, squares = _input(x_rows, alpha, squares, k, row_mask, INNER, NORM, EVEN, WIDE)
            w = _weights(w_rows, k, output_mask, INNER, EVEN)
            total = _dot(tile, _narrow(w, tile.dtype, WIDE), total, WIDE)
            if GATE:
                w = _weights(w_up_rows, k, output_mask, INNER, EVEN)
                up = _dot(tile, _narrow(w, tile.dtype, WIDE), up, WIDE)

    if KIND == 1:
        total *= tl.load(scale + n, mask=output_mask, other=0.0).to(tl.float32)[None, :]
        if GATE:
            up *= tl.load(scale + n_up, mask=output_mask, other=0.0).to(tl.float32)[None, :]
    if NORM:
        # The norm's factor is one number per row: apply it to the sums instead of to x.
        rstd = 1.0 / tl.sqrt(squares / INNER + eps)
        total *= rstd[:, None]
        up *= rstd[:, None]
    if GATE:
        # silu(total) * up. exp of a negative number only: it cannot overflow.
        small = tl.exp(-tl.abs(total))
        total *= tl.where(total > 0, 1.0, small) / (1.0 + small) * up
    offset = m.to(tl.int64)[:, None] * outputs + n[None, :]
    mask = row_mask[:, None] & output_mask[None, :]
    if RESIDUAL:
        total += tl.load(residual + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + offset, total.to(y.dtype.element_ty), mask=mask)


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
    """Multiply by a weight, with the operations around the product, in one launch.

    Args:
        x: [..., K], bfloat16; float32 only with a float32 weight. [B, T, K] with T > 1 is a prompt.
        weight: [N, K] of ``x``'s type, or low-bit as in ``quantization.weights``.
        scale: As in ``quantization.weights``, but int4's transposed to [P / 128, N], contiguous:
            see ``kernel_scale``.
        format: Format of the weight; None for ``x``'s type.
        alpha: Weight of an RMS norm that is applied to ``x`` first, [K].
        eps: Epsilon of the norm.
        gate: Whether the outputs are [gate; up], of which ``silu(gate) * up`` is returned.
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
    # Triton launches on the current device, not on the device of its arguments.
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
        RuntimeError: The results differ. Any other exception means that the kernel does not run.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    outputs, inner, eps = 64, 2 * PAIR, 1e-6
    x, alpha, weight = noise(3, inner), noise(inner), noise(2 * outputs, inner)
    stored, scale, wide = weight, None, weight.float()
    if format is not None:
        low = quantize(weight, format)
        stored, scale, wide = low.weight, kernel_scale(low), dequantize(low)
    residual = noise(3, outputs)
    y = gemm(x, stored, scale, format, alpha=alpha, eps=eps, gate=True, residual=residual)
    normed = torch.nn.functional.rms_norm(x.float(), (inner,), alpha.float(), eps)
    gate, up = (normed @ wide.T).chunk(2, dim=-1)
    expected = torch.nn.functional.silu(gate) * up + residual.float()
    error = float((y.float() - expected).norm() / expected.norm())
    if not error < 0.02:
        raise RuntimeError(f"the product differs from PyTorch's by {error:.2%}")


def kernel_scale(low: LowBit) -> Tensor:
    """A weight's scale in ``gemm``'s layout: int4's transposed, so that loads are coalesced."""
    return low.scale.t().contiguous() if low.format == "int4" else low.scale
