"""The CPU attention kernel against PyTorch, and the choice of the class that uses it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipecat_personaplex.engine import kv_cache
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.ring_attention import CpuRingAttention, SlicedRingAttention
from pipecat_personaplex.kernels.availability import cpu_attention_works
from pipecat_personaplex.kernels.cpu_attention import HEAD_DIMS, Rows, attend
from pipecat_personaplex.models.attention import rotary_frequencies, rotate, rotation
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.kv import KVTensor

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16, FP8]

pytestmark = pytest.mark.skipif(
    not cpu_attention_works(64, torch.float32), reason="no CPU kernels here"
)


def new_ring(heads: int, window: int, dim: int, dtype: torch.dtype) -> KVTensor:
    ring = KVTensor.new((3, heads, window, dim), dtype, CPU, zeros=True)
    ring.put(..., torch.randn(3, heads, window, dim))
    return ring


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_attention(dtype: torch.dtype, dim: int) -> None:
    heads, window = 3, 203
    q, k, v = torch.randn(3, 2, heads, 1, dim).unbind(0)
    slots = [2, 0]
    for filled in ((1, 203), (16, 17), (64, 65), (130, 128)):
        keys, values = (new_ring(heads, window, dim, dtype) for _ in range(2))
        indices = [length - 1 for length in filled]
        out = attend(q, k, v, keys, values, Rows(slots, indices, filled), None)
        for row, (slot, length) in enumerate(zip(slots, filled, strict=True)):
            for ring, new in ((keys, k), (values, v)):  # stored as KVTensor.put stores
                other = KVTensor.new((heads, dim), dtype, CPU, zeros=True)
                other.put(..., new[row, :, 0])
                stored = ring.read(torch.float32, (slot, slice(None), length - 1))
                assert torch.equal(stored, other.read(torch.float32))
            index = (slot, slice(None), slice(length))
            expected = F.scaled_dot_product_attention(
                q[row].double(), keys.read(torch.float64, index), values.read(torch.float64, index)
            )
            assert (out[row] - expected).abs().max() < 1e-5
        # A row does not depend on the other rows.
        alone = attend(
            q[:1], k[:1], v[:1], keys, values, Rows(slots[:1], indices[:1], filled[:1]), None
        )
        assert torch.equal(alone[0], out[0])


def test_every_e4m3_number_is_read_and_written_as_pytorch_does() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[(codes & 127) != 127].view(FP8).float()  # without the two NaNs
    near = torch.cat((numbers * 1.03125, numbers * 1.0625, numbers + 2**-10))
    vectors = torch.cat((numbers, near)).clamp(-448, 448)
    vectors = F.pad(vectors, (0, -len(vectors) % 31)).view(-1, 31)
    vectors = torch.cat((vectors, torch.full((len(vectors), 1), 448.0)), dim=1)  # scale 1
    rows, dim = vectors.shape
    ring = KVTensor.new((rows, 1, 1, dim), FP8, CPU, zeros=True)
    values = KVTensor.new((rows, 1, 1, dim), FP8, CPU, zeros=True)
    x = vectors[:, None, None]
    batch = Rows(range(rows), [0] * rows, [1] * rows)
    out = attend(x, x, x, ring, values, batch, None)
    expected = KVTensor.new((rows, dim), FP8, CPU, zeros=True)
    expected.put(..., vectors)
    assert torch.equal(ring.read(torch.float32)[:, 0, 0], expected.read(torch.float32))
    # One filled position: the output is its value.
    torch.testing.assert_close(out[:, 0, 0], expected.read(torch.float32), rtol=1e-6, atol=0)


def test_a_nan_stays_in_its_row() -> None:
    keys, values = (new_ring(2, 100, 64, torch.bfloat16) for _ in range(2))
    q, k, v = torch.randn(3, 2, 2, 1, 64).unbind(0)
    rows = Rows([0, 1], [50, 60], [51, 61])
    clean = attend(q, k, v, keys, values, rows, None)
    k = k.clone()
    k[1] = float("nan")
    out = attend(q, k, v, keys, values, rows, None)
    assert torch.equal(out[0], clean[0])
    assert out[1].isnan().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_large_ring_uses_the_kernel_and_agrees_with_slices(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def new(least: int) -> RingCache:
        monkeypatch.setattr(kv_cache, "_CPU_KERNEL_MIN_NUMBERS", least)
        return RingCache(
            layers=1,
            slots=3,
            heads=2,
            window=20,
            head_dim=64,
            dtype=torch.float32,
            device=CPU,
            kv_dtype=dtype,
        )

    kernel, sliced = new(1), new(1 << 40)
    batch = Batch.of([0, 2], CPU)
    frequencies = rotary_frequencies(64, 10_000, CPU)
    for frame in range(50):
        starts = [frame, max(0, frame - 3)]
        q, k, v = torch.randn(3, 2, 2, 1, 64).unbind(0)
        angles = rotation(torch.tensor(starts)[:, None], frequencies)
        one = kernel.at(batch, starts, torch.tensor(starts))
        two = sliced.at(batch, starts, torch.tensor(starts))
        assert isinstance(one, CpuRingAttention)
        assert isinstance(two, SlicedRingAttention)
        one.rotate_by(angles)
        result = one.attend(0, q, k, v)
        expected = two.attend(0, rotate(q, angles), rotate(k, angles), v)
        torch.testing.assert_close(result, expected, rtol=2e-2, atol=2e-2)
