"""Low-bit weights: their error, and that the result does not depend on blocks."""

from __future__ import annotations

import pytest
import torch

from pipecat_personaplex.config import QUANTIZATIONS, Quantization
from pipecat_personaplex.quantization.weights import (
    dequantize,
    empty,
    fill,
    int4_codes,
    quantize,
    storage,
)

SHAPES = [(3, 16), (70, 64), (130, 336), (64, 512)]


@pytest.mark.parametrize(("format", "most"), [("int8", 0.008), ("fp8", 0.03), ("int4", 0.11)])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_error(shape: tuple[int, int], format: Quantization, most: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.rand(shape[0], 1).mul(4).exp()
    back = dequantize(quantize(weight, format))
    assert back.shape == weight.shape
    assert (back - weight).norm() < most * weight.norm()
    rows = slice(1, 3)
    assert torch.equal(dequantize(quantize(weight, format), rows), back[rows])


@pytest.mark.parametrize("format", QUANTIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_storage_matches_the_tensors(shape: tuple[int, int], format: Quantization) -> None:
    stored, low = storage(format, *shape), quantize(torch.randn(shape), format)
    assert (low.weight.shape, low.weight.dtype) == (stored.weight, stored.weight_dtype)
    assert (low.scale.shape, low.scale.dtype) == (stored.scale, stored.scale_dtype)


@pytest.mark.parametrize("format", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_quantised_independently(format: Quantization, dtype: torch.dtype) -> None:
    weight = torch.randn(150, 300).to(dtype)
    whole = quantize(weight, format)
    parts = empty(format, 150, 300, torch.device("cpu"))
    for start, end in ((0, 1), (1, 100), (100, 150)):
        fill(parts, start, weight[start:end])
    assert torch.equal(parts.weight.view(torch.uint8), whole.weight.view(torch.uint8))
    assert torch.equal(parts.scale, whole.scale)


@pytest.mark.parametrize("format", QUANTIZATIONS)
def test_zeros_and_extremes_are_preserved(format: Quantization) -> None:
    weight = torch.zeros(3, 512)
    weight[1, 0], weight[1, 400] = -8.0, 3.0
    weight[2, 130] = 1e-30
    back = dequantize(quantize(weight, format))
    assert back[0].eq(0).all()
    assert back[1].ne(0).sum() == 2
    torch.testing.assert_close(back[1, [0, 400]], torch.tensor([-8.0, 3.0]), atol=0.05, rtol=0.05)
    assert back[2].abs().max() < 1e-11


def test_int4_halves_of_a_byte_are_two_groups() -> None:
    codes = torch.randint(0, 16, (2, 512), dtype=torch.uint8)
    packed = torch.empty(2, 256, dtype=torch.uint8)
    for byte in range(256):
        pair, column = divmod(byte, 128)
        low, high = codes[:, 256 * pair + column], codes[:, 256 * pair + 128 + column]
        packed[:, byte] = low + 16 * high
    assert torch.equal(int4_codes(packed), codes)
