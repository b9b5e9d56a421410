"""The CPU kernels for low-bit weights against float64, at every number of rows with a kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipecat_personaplex.config import Quantization
from pipecat_personaplex.kernels import cpu_linear
from pipecat_personaplex.kernels.availability import cpu_gemm_works
from pipecat_personaplex.models.layers import GatedMLP, RMSNorm, project
from pipecat_personaplex.models.linear import (
    HeadLinear,
    Linear,
    PackedLinear,
    optimize_linear,
)
from pipecat_personaplex.models.low_bit_linear import CpuKernelLinear
from pipecat_personaplex.quantization.weights import dequantize, quantize

pytestmark = pytest.mark.skipif(not cpu_gemm_works("int8"), reason="no CPU kernels here")

# Outputs and inputs: whole tiles and blocks, and such as must be padded.
# Error of the quantised rows, as a part of the largest result.
MOST = {"int8": 1e-4, "int4": 0.03}
SHAPES = [(32, 256), (96, 320), (50, 112), (512, 4096), (144, 1408)]
BATCHES = [1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 40]


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products(format: Quantization, outputs: int, inputs: int) -> None:
    low = quantize(torch.randn(outputs, inputs), format)
    weight = cpu_linear.pack(low)
    x = torch.randn(40, inputs)
    residual = torch.randn(40, outputs)
    product = x.double() @ dequantize(low).double().t()
    whole = weight.multiply(x)
    assert (whole - product).abs().max() < MOST[format] * product.abs().max()
    for rows in BATCHES:
        assert torch.equal(weight.multiply(x[:rows]), whole[:rows])
    added = weight.multiply(x, residual=residual)
    torch.testing.assert_close(added, whole + residual)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 256), (96, 320), (48, 112), (512, 4096)])
def test_norm_and_gate(format: Quantization, outputs: int, inputs: int) -> None:
    low = quantize(torch.randn(outputs, inputs), format)
    weight = cpu_linear.pack(low)
    x, alpha = torch.randn(33, inputs) * 3, torch.rand(inputs)
    normed = F.rms_norm(x.double(), (inputs,), alpha.double(), 1e-8)
    gates, up = (normed @ dequantize(low).double().t()).chunk(2, dim=-1)
    expected = F.silu(gates) * up
    y = weight.multiply(x, alpha=alpha, eps=1e-8, gate=True)
    assert (y - expected).abs().max() < 2 * MOST[format] * expected.abs().max()
    for rows in BATCHES[:-1]:
        part = weight.multiply(x[:rows], alpha=alpha, eps=1e-8, gate=True)
        assert torch.equal(part, y[:rows])


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_extreme_rows(format: Quantization) -> None:
    low = quantize(torch.randn(64, 256), format)
    weight = cpu_linear.pack(low)
    x = torch.randn(4, 256)
    x[0] = 0
    x[1] *= 1e30
    x[2, 7] = float("nan")
    x[3, 7] = float("inf")
    y = weight.multiply(x)
    assert y[0].eq(0).all()
    product = x[1].double() @ dequantize(low).double().t()
    assert (y[1] - product).abs().max() < MOST[format] * product.abs().max()
    assert not y[2:].isfinite().any()
    # A row with a NaN does not change its neighbours.
    assert torch.equal(weight.multiply(x[1:2])[0], y[1])


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_gated_mlp_fuses_its_products(format: Quantization) -> None:
    mlp, norm = GatedMLP(256, 320), RMSNorm(256)
    torch.nn.init.uniform_(norm.alpha, 0.5, 1.5)
    for name in ("linear_in", "linear_out"):
        layer = getattr(mlp, name)
        torch.nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
        setattr(mlp, name, optimize_linear(layer, format))
        assert isinstance(getattr(mlp, name), CpuKernelLinear)
    x = torch.randn(3, 1, 256)
    apart = mlp.linear_in(norm(x))
    gates, up = apart.chunk(2, dim=-1)
    expected = mlp.linear_out(F.silu(gates) * up) + x
    torch.testing.assert_close(mlp(x, norm=norm, residual=x), expected, rtol=2e-2, atol=2e-2)
    # Activations in bfloat16 are multiplied one by one.
    narrow = project(mlp.linear_in, x.bfloat16(), norm=norm, gate=True)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), F.silu(gates) * up, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 320), (50, 64), (2050, 1024)])
def test_output_heads(outputs: int, inputs: int) -> None:
    layer = Linear(inputs, outputs, quantizable=False)
    torch.nn.init.normal_(layer.weight)
    head = optimize_linear(layer, "int8")
    assert isinstance(head, HeadLinear)
    x = torch.randn(9, inputs)
    whole = head(x)
    expected = x.double() @ layer.weight.bfloat16().double().t()
    torch.testing.assert_close(whole.double(), expected, rtol=1e-4, atol=1e-3)
    for rows in (1, 2, 3, 4):
        assert torch.equal(head(x[:rows]), whole[:rows])
    assert head(x.bfloat16()).dtype == torch.bfloat16


def test_heads_of_other_widths_are_packed() -> None:
    layer = Linear(48, 64, quantizable=False)
    torch.nn.init.normal_(layer.weight)
    assert isinstance(optimize_linear(layer, "int8"), PackedLinear)
