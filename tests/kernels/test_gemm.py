"""Every form of the product against float32, in Triton's interpreter."""

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
ROWS = (1, 2, 3, 8, 16, 33)
# (outputs, inputs): less than a block; whole blocks; odd outputs and a last block cut short.
SHAPES = ((5, 48), (32, 256), (33, 336))
EPS = 1e-5


class Weight:
    """A weight for the kernel, and what it stands for."""

    def __init__(self, outputs: int, inner: int, format: Quantization | None):
        weight = torch.randn(outputs, inner).bfloat16()
        self.format = format
        self.low: LowBit | None = None
        self.kept, self.scale, self.wide = weight, None, weight.float()
        if format is not None:
            low = quantize(weight, format)
            self.kept, self.scale, self.wide = low.weight, kernel_scale(low), dequantize(low)

    def multiply(self, x: Tensor, **around: object) -> Tensor:
        return gemm(x, self.kept, self.scale, self.format, **around)


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
        opening, up = y.chunk(2, dim=-1)
        y = F.silu(opening) * up
    return y if residual is None else y + residual.float()


def assert_close(y: Tensor, expected: Tensor) -> None:
    assert y.shape == expected.shape
    # The interpreter cuts results off to bfloat16's eight bits; besides that they are exact.
    error = (y.float() - expected).norm() / expected.norm()
    assert error < 2**-7, float(error)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", ROWS)
def test_a_product_in_every_shape(rows: int, format: Quantization | None) -> None:
    torch.manual_seed(rows)
    for outputs, inner in SHAPES:
        x, weight = torch.randn(rows, inner).bfloat16(), Weight(outputs, inner, format)
        assert_close(weight.multiply(x), reference(x, weight.wide))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("norm", "gate", "residual"), list(itertools.product((False, True), repeat=3))[1:]
)
def test_what_comes_before_and_after_is_in_the_same_launch(
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


def test_the_norms_eps_counts_for_small_inputs() -> None:
    x, weight = torch.full((2, 256), 1e-3).bfloat16(), Weight(16, 256, "int8")
    alpha = torch.ones(256)
    for eps in (1e-8, 1e-4):
        expected = reference(x, weight.wide, alpha, eps)
        assert_close(weight.multiply(x, alpha=alpha, eps=eps), expected)


@pytest.mark.parametrize("rows", [1, 5])
def test_float32_is_exact(rows: int) -> None:
    x, weight, alpha = torch.randn(rows, 100), torch.randn(24, 100), torch.rand(100)
    y = gemm(x, weight, alpha=alpha, eps=EPS)
    torch.testing.assert_close(y, reference(x, weight, alpha, EPS), atol=1e-5, rtol=1e-5)


def test_rows_of_a_wider_tensor_are_read_where_they_stand() -> None:
    x, weight = torch.randn(6, 3, 64).bfloat16()[:, 1], Weight(16, 64, "fp8")
    assert_close(weight.multiply(x), reference(x, weight.wide))


@pytest.mark.parametrize("format", FORMATS)
def test_a_prompt_takes_larger_blocks(format: Quantization | None) -> None:
    x, weight = torch.randn(1, 70, 256).bfloat16(), Weight(32, 256, format)
    assert_close(weight.multiply(x), reference(x, weight.wide))


def test_no_rows_are_no_work() -> None:
    assert Weight(16, 64, None).multiply(torch.empty(0, 64).bfloat16()).shape == (0, 16)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_is_the_same_beside_any_neighbours(format: Quantization | None) -> None:
    x, weight = torch.randn(40, 512).bfloat16(), Weight(32, 512, format)
    together = weight.multiply(x)
    for rows in (1, 3, 8, 16, 17, 32, 33):
        assert torch.equal(weight.multiply(x[:rows]), together[:rows])


def test_the_check_finds_a_kernel_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for format in FORMATS:
        gemm_module.check(cpu, format)
    monkeypatch.setattr(gemm_module, "kernel_scale", lambda low: 1.1 * low.scale.t().contiguous())
    with pytest.raises(RuntimeError, match="the product is off by 20"):
        gemm_module.check(cpu, "int4")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 64, 192, 256])
@pytest.mark.parametrize(
    ("outputs", "inner"), [(12288, 4096), (4096, 11264), (22528, 4096), (1024, 2816), (32000, 4096)]
)
def test_blocks_of_the_7b_fit_the_smallest_gpu_and_fill_the_largest(
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
    # How sums are ordered must not depend on the batch.
    if format == "int4":
        assert plan.inner == 256
