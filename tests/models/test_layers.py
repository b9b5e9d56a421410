"""Packed and low-bit layers against plain ones; norm and MLP."""

from __future__ import annotations

import pytest
import torch

from pipecat_personaplex.config import QUANTIZATIONS, Quantization
from pipecat_personaplex.models import linear as linear_module
from pipecat_personaplex.models import low_bit_linear
from pipecat_personaplex.models.layers import GatedMLP, RMSNorm
from pipecat_personaplex.models.linear import Linear, PackedLinear, optimize_linear
from pipecat_personaplex.models.low_bit_linear import BlockLinear, Int4Linear, Int8Linear
from pipecat_personaplex.quantization.weights import dequantize, quantize


@pytest.fixture
def plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without kernels."""
    for module in (low_bit_linear, linear_module):
        monkeypatch.setattr(module, "cpu_gemm_works", lambda format: False)


def linear(rows: int, columns: int, quantizable: bool = True) -> Linear:
    layer = Linear(columns, rows, quantizable)
    torch.nn.init.normal_(layer.weight, std=columns**-0.5)
    return layer


@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
def test_packed_linear_equals_the_plain_layer(rows: int) -> None:
    layer = linear(512, 384)
    packed = optimize_linear(layer, None)
    assert isinstance(packed, PackedLinear)
    x = torch.randn(rows, 1, 384)
    torch.testing.assert_close(packed(x), layer(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", [1, 1920])
def test_a_small_weight_is_packed_if_each_session_has_many_rows(positions: int) -> None:
    layer = Linear(48, 8, positions=positions)
    torch.nn.init.normal_(layer.weight)
    optimized = optimize_linear(layer, None)
    assert isinstance(optimized, PackedLinear) == (positions > 1)
    x, bias = torch.randn(3, positions, 48), torch.randn(8)
    together = optimized(x, bias)
    torch.testing.assert_close(together, layer(x, bias), atol=1e-4, rtol=1e-4)
    if positions > 1:
        assert torch.equal(optimized(x[1:2], bias), together[1:2])


@pytest.mark.usefixtures("plain_pytorch")
@pytest.mark.parametrize("rows", [1, 2, 8, 32, 33, 300])
def test_int8_error_with_and_without_the_kernel(rows: int) -> None:
    layer = linear(512, 384)
    small = optimize_linear(layer, "int8")
    assert isinstance(small, Int8Linear)
    assert small.weight.dtype == torch.int8
    x = torch.randn(rows, 384)
    expected = layer(x)
    error = (small(x) - expected).norm() / expected.norm()
    assert error < 0.015  # 8 bits of weight and of activation mantissa
    assert small(x).dtype == torch.float32


@pytest.mark.usefixtures("plain_pytorch")
@pytest.mark.parametrize(
    ("format", "form", "most"), [("int4", Int4Linear, 0.14), ("fp8", BlockLinear, 0.035)]
)
@pytest.mark.parametrize(("outputs", "inner"), [(512, 384), (80, 272)])
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 300])
def test_int4_and_fp8_errors(
    rows: int, outputs: int, inner: int, format: Quantization, form: type, most: float
) -> None:
    layer = linear(outputs, inner)
    small = optimize_linear(layer, format)
    assert type(small) is form
    x = torch.randn(rows, 1, inner)
    expected = layer(x)
    y = small(x)
    assert (y.shape, y.dtype) == (expected.shape, torch.float32)
    assert (y - expected).norm() / expected.norm() < most
    # The error comes from the weights' rounding, not from the product.
    rounded = x @ dequantize(quantize(layer.weight, format)).T
    assert (y - rounded).norm() / rounded.norm() < 0.01


@pytest.mark.usefixtures("plain_pytorch")
def test_block_linear_replaces_an_unsupported_int4_height() -> None:
    small = optimize_linear(linear(120, 256), "int4")
    assert isinstance(small, BlockLinear)


@pytest.mark.usefixtures("plain_pytorch")
def test_int8_replaces_int4_if_int4_is_not_allowed() -> None:
    layer = linear(64, 64)
    layer.allow_int4 = False
    assert isinstance(optimize_linear(layer, "int4"), Int8Linear)
    assert isinstance(optimize_linear(layer, "fp8"), BlockLinear)


@pytest.mark.usefixtures("plain_pytorch")
def test_int8_preserves_zero_rows_and_extremes() -> None:
    layer = linear(70, 64)
    layer.weight.data[3] = 0
    layer.weight.data[65] = 0
    layer.weight.data[65, 1] = -8.0
    small = Int8Linear(quantize(layer.weight, "int8"))
    y = small(torch.eye(64))
    assert y[:, 3].eq(0).all()
    assert abs(float(y[1, 65]) + 8.0) < 0.05
    assert y[2:, 65].eq(0).all()


@pytest.mark.parametrize("columns", [520, 600, 1000])
def test_unsupported_int8_widths_stay_in_floating_point(columns: int) -> None:
    layer = linear(384, columns)
    assert columns % 16
    packed = optimize_linear(layer, "int8")
    assert isinstance(packed, PackedLinear)
    for rows in (1, 2, 8):
        x = torch.randn(rows, columns)
        expected = layer(x)
        assert (packed(x) - expected).norm() / expected.norm() < 0.01


@pytest.mark.usefixtures("plain_pytorch")
def test_heads_are_not_quantised_and_small_layers_not_packed() -> None:
    head = optimize_linear(linear(2048, 256, quantizable=False), "int8")
    assert isinstance(head, PackedLinear)
    small = linear(32, 32)
    assert optimize_linear(small, None) is small
    assert isinstance(optimize_linear(small, "int8"), Int8Linear)


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
@pytest.mark.parametrize(("rows", "columns"), [(512, 384), (2048, 4096)])
def test_rows_are_bit_exact_in_every_batch_size(
    rows: int, columns: int, quantization: str | None
) -> None:
    require_equal_rows(optimize_linear(linear(rows, columns), quantization), columns)


@pytest.mark.usefixtures("plain_pytorch")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize(("rows", "columns"), [(512, 384), (2048, 4096)])
def test_rows_are_bit_exact_without_kernels(rows: int, columns: int, quantization: str) -> None:
    require_equal_rows(optimize_linear(linear(rows, columns), quantization), columns)


def require_equal_rows(layer: torch.nn.Module, columns: int) -> None:
    x = torch.randn(12, 1, columns)
    alone = torch.cat([layer(row[None]) for row in x])
    for batch in (2, 3, 8, 12):
        assert torch.equal(layer(x[:batch]), alone[:batch])


def test_weights_of_other_devices_are_unchanged() -> None:
    with torch.device("meta"):
        layer = Linear(1024, 1024)
    assert optimize_linear(layer, None) is layer


def test_rms_norm_is_computed_in_float32() -> None:
    norm = RMSNorm(64)
    torch.nn.init.uniform_(norm.alpha, 0.5, 1.5)
    x = torch.randn(2, 3, 64) * 1e-5
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-8).sqrt() * norm.alpha
    torch.testing.assert_close(norm(x), expected)
    narrow = norm(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, atol=1e-2, rtol=2e-2)


def test_gated_mlp_splits_gate_before_up() -> None:
    mlp = GatedMLP(8, 16)
    for layer in (mlp.linear_in, mlp.linear_out):
        torch.nn.init.normal_(layer.weight)
    x = torch.randn(4, 8)
    gate, up = (x @ mlp.linear_in.weight.T).split(16, dim=-1)
    expected = (gate * gate.sigmoid() * up) @ mlp.linear_out.weight.T
    torch.testing.assert_close(mlp(x), expected)
