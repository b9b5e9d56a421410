"""The GEMM kernel in every form against float32 products, in Triton's interpreter."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.config import QUANTIZATIONS, Quantization
from pipecat_personaplex.quantization.weights import LowBit, dequantize, quantize

pytest.importorskip("triton")

from pipecat_personaplex.kernels import gemm as gemm_module
from pipecat_personaplex.kernels.gemm import gemm, kernel_scale

FORMATS: tuple[Quantization | None, ...] = (None, *QUANTIZATIONS)
ROWS = (1, 3, 16, 33)  # a masked block, a whole block, and more than one
# (outputs, inputs): less than a block; whole blocks; odd outputs and a partial last block.
SHAPES = ((5, 48), (32, 256), (33, 336))
EPS = 1e-5


class Weight:
    """A weight in the kernel's layout and its value in float32."""

    def __init__(self, outputs: int, inner: int, format: Quantization | None):
        weight = torch.randn(outputs, inner).bfloat16()
        self.format = format
        self.low: LowBit | None = None
        self.stored, self.scale, self.wide = weight, None, weight.float()
        if format is not None:
            low = quantize(weight, format)
            self.stored, self.scale, self.wide = low.weight, kernel_scale(low), dequantize(low)

    def multiply(self, x: Tensor, **around: object) -> Tensor:
        return gemm(x, self.stored, self.scale, self.format, **around)


def reference(
    x: Tensor,
    wide: Tensor,
    alpha: Tensor | None = None,
    eps: float = 0.0,
    gate: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    y = x.float()
    if alpha is not None:
        y = F.rms_norm(y, alpha.shape, alpha.float(), eps)
    y = y @ wide.T
    if gate:
        gates, up = y.chunk(2, dim=-1)
        y = F.silu(gates) * up
    return y if residual is None else y + residual.float()


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape
    # The interpreter truncates results to bfloat16's eight bits; otherwise they are exact.
    error = (y.float() - expected).norm() / expected.norm()
    assert error < 2**-7, float(error)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", ROWS)
def test_products_of_every_shape(rows: int, format: Quantization | None) -> None:
    torch.manual_seed(rows)
    for outputs, inner in SHAPES:
        x, weight = torch.randn(rows, inner).bfloat16(), Weight(outputs, inner, format)
        assert_close(weight.multiply(x), reference(x, weight.wide))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("norm", "gate", "residual"), list(itertools.product((False, True), repeat=3))[1:]
)
def test_norm_gate_and_residual_are_fused(
    format: Quantization | None, norm: bool, gate: bool, residual: bool
) -> None:
    torch.manual_seed(1)
    for rows, (outputs, inner) in zip((1, 3, 33), SHAPES, strict=True):
        x = (5 * torch.randn(rows, 1, inner)).bfloat16()
        weight = Weight(2 * outputs if gate else outputs, inner, format)
        around = {
            "alpha": torch.rand(inner).bfloat16() + 0.5 if norm else None,
            "eps": EPS,
            "gate": gate,
            "residual": torch.randn(rows, 1, outputs).bfloat16() if residual else None,
        }
        assert_close(weight.multiply(x, **around), reference(x, weight.wide, **around))


def test_norm_epsilon_matters_for_small_inputs() -> None:
    x, weight = torch.full((2, 256), 1e-3).bfloat16(), Weight(16, 256, "int8")
    alpha = torch.ones(256)
    for eps in (1e-8, 1e-4):
        expected = reference(x, weight.wide, alpha, eps)
        assert_close(weight.multiply(x, alpha=alpha, eps=eps), expected)


@pytest.mark.parametrize("rows", [1, 5])
def test_float32_products_are_exact(rows: int) -> None:
    x, weight, alpha = torch.randn(rows, 100), torch.randn(24, 100), torch.rand(100)
    y = gemm(x, weight, alpha=alpha, eps=EPS)
    torch.testing.assert_close(y, reference(x, weight, alpha, EPS), atol=1e-5, rtol=1e-5)


def test_strided_rows_are_read_in_place() -> None:
    x, weight = torch.randn(6, 3, 64).bfloat16()[:, 1], Weight(16, 64, "fp8")
    assert_close(weight.multiply(x), reference(x, weight.wide))


@pytest.mark.parametrize("format", FORMATS)
def test_prompts_use_larger_blocks(format: Quantization | None) -> None:
    x, weight = torch.randn(1, 70, 256).bfloat16(), Weight(32, 256, format)
    assert_close(weight.multiply(x), reference(x, weight.wide))


def test_an_empty_batch_launches_nothing() -> None:
    assert Weight(16, 64, None).multiply(torch.empty(0, 64).bfloat16()).shape == (0, 16)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_the_batch(format: Quantization | None) -> None:
    x, weight = torch.randn(40, 512).bfloat16(), Weight(32, 512, format)
    together = weight.multiply(x)
    for rows in (1, 3, 8, 16, 17, 32, 33):
        assert torch.equal(weight.multiply(x[:rows]), together[:rows])


def test_check_rejects_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for format in FORMATS:
        gemm_module.check(cpu, format)
    monkeypatch.setattr(gemm_module, "kernel_scale", lambda low: 1.1 * low.scale.t().contiguous())
    with pytest.raises(RuntimeError, match="the product differs from PyTorch's by 20"):
        gemm_module.check(cpu, "int4")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 64, 192, 256])
@pytest.mark.parametrize(
    ("outputs", "inner"), [(12288, 4096), (4096, 11264), (22528, 4096), (1024, 2816), (32000, 4096)]
)
def test_7b_blocks_fit_the_smallest_gpu_and_fill_the_largest(
    outputs: int, inner: int, rows: int, format: Quantization | None
) -> None:
    kind = gemm_module._KINDS[format]
    itemsize = 2 if format is None else 1
    for tiles, prompt in itertools.product((1, 2), (False, True)):
        plan = gemm_module._plan(rows, outputs // tiles, kind, itemsize, tiles, prompt)
        assert plan.rows <= (64 if prompt else 32)
        row_bytes = 128 if format == "int4" else plan.inner * itemsize
        stage = tiles * plan.outputs * row_bytes + plan.rows * plan.inner * 2
        assert 2 <= plan.stages <= 5
        assert plan.stages * stage <= 99 << 10
        assert inner % plan.inner == 0
        programs = -(-rows // plan.rows) * -(-outputs // tiles // plan.outputs)
        assert programs >= 128 or plan.outputs == (32 if format == "int4" else 16)
    # The order of sums must not depend on the batch.
    if format == "int4":
        assert plan.inner == 256
