"""The three ring attentions against a plain attention, position by position."""

from __future__ import annotations

import math

import pytest
import torch
from loguru import logger
from torch import Tensor

from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.prefill import PromptKVCache
from pipecat_personaplex.engine.ring_attention import (
    MaskedRingAttention,
    SlicedRingAttention,
    TritonRingAttention,
)
from pipecat_personaplex.kernels import availability
from pipecat_personaplex.kernels.availability import have_triton, ring_attention_works
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.kv import KVTensor

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(not have_triton(), reason="Triton is for Linux")
HEADS, DIM, WINDOW, SLOTS = 2, 8, 7, 5


def stored(ring: RingCache) -> tuple[KVTensor, KVTensor]:
    return ring.stored_keys, ring.stored_values


def plain_attention(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query [H, D] attends to the given positions, each [H, D]."""
    k, v = torch.stack(keys, dim=1), torch.stack(values, dim=1)
    weights = (torch.einsum("hd,htd->ht", q, k) / math.sqrt(DIM)).softmax(dim=-1)
    return torch.einsum("ht,htd->hd", weights, v)


def new_ring(kv_dtype: torch.dtype) -> RingCache:
    ring = RingCache(
        layers=2,
        slots=SLOTS,
        heads=HEADS,
        window=WINDOW,
        head_dim=DIM,
        dtype=torch.float32,
        device=CPU,
        kv_dtype=kv_dtype,
    )
    # NaN shows if unwritten indices are read.
    for store in (ring.stored_keys, ring.stored_values):
        if store.scales is None:
            store.data.fill_(torch.nan)
        else:
            store.bits.zero_()
            store.scales.fill_(torch.nan)
    return ring


def round_trip(x: Tensor, kv_dtype: torch.dtype) -> Tensor:
    """``x`` as a ring of this type returns it."""
    store = KVTensor.new(tuple(x.shape), kv_dtype, CPU, zeros=False)
    store.put(..., x)
    return store.read(torch.float32)


@pytest.mark.parametrize(
    "kind",
    [
        SlicedRingAttention,
        MaskedRingAttention,
        pytest.param(TritonRingAttention, marks=needs_triton),
    ],
)
@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("slots", [[0], [1, 2, 3], [0, 2, 4]])
def test_ring_attention_equals_plain_attention_over_the_window(
    kind: type, kv_dtype: torch.dtype, steps: int, slots: list[int]
) -> None:
    torch.manual_seed(0)
    ring = new_ring(kv_dtype)
    if kind is MaskedRingAttention:  # unwritten indices are read with weight zero
        ring.stored_keys.zero_()
        ring.stored_values.zero_()
    # The interpreter truncates to bfloat16 where a GPU rounds.
    close = {"atol": 2e-2, "rtol": 2e-2} if kv_dtype == torch.bfloat16 else {}
    batch = Batch.of(slots, CPU)
    # Rows start at different positions: their rings wrap at different times.
    starts_of = {slot: 3 * row + 2 for row, slot in enumerate(slots)}
    history: dict[int, list[tuple[Tensor, Tensor]]] = {slot: [] for slot in slots}
    for slot, start in starts_of.items():
        for position in range(start):
            k, v = torch.randn(2, HEADS, DIM), torch.randn(2, HEADS, DIM)
            ring.write(slot, position, k[:, :, None], v[:, :, None])
            history[slot].append((round_trip(k, kv_dtype), round_trip(v, kv_dtype)))
    # Fewer frames in the slow interpreter; the oldest ring still wraps.
    frames = 2 if kind is TritonRingAttention else 3 * WINDOW // steps
    for _ in range(frames):
        starts = [len(history[slot]) for slot in slots]
        shape = (2, len(slots), HEADS, steps, DIM)
        q, k, v = torch.randn(shape), torch.randn(shape), torch.randn(shape)
        view = (
            kind(*stored(ring), batch, starts, steps)
            if kind is SlicedRingAttention
            else kind(*stored(ring), batch, torch.tensor(starts), steps)
        )
        got = [view.attend(layer, q[layer], k[layer], v[layer]) for layer in range(2)]
        for row, slot in enumerate(slots):
            for step in range(steps):
                new = k[:, row, :, step], v[:, row, :, step]
                history[slot].append((round_trip(new[0], kv_dtype), round_trip(new[1], kv_dtype)))
            end = len(history[slot])
            for step in range(steps):
                position = end - steps + step
                # The whole frame is stored first: what its last position replaced is gone.
                seen = history[slot][max(0, end - WINDOW) : position + 1]
                for layer in range(2):
                    expected = plain_attention(
                        q[layer, row, :, step],
                        [entry[0][layer] for entry in seen],
                        [entry[1][layer] for entry in seen],
                    )
                    torch.testing.assert_close(got[layer][row, :, step], expected, **close)


@pytest.mark.parametrize("steps", [1, 2])
def test_rows_that_attend_in_one_call_have_the_bits_that_they_have_alone(steps: int) -> None:
    torch.manual_seed(4)
    # Slots 1 to 3 are full at different ring indices; slot 4 is young.
    slots, starts = [1, 2, 3, 4], [2 * WINDOW, 2 * WINDOW + 1, 5 * WINDOW - 1, 2]
    together = new_ring(torch.float32)
    for slot in slots:
        together.write(slot, 0, *torch.randn(2, 2, HEADS, WINDOW, DIM))
    alone = [store.data.clone() for store in stored(together)]
    q, k, v = torch.randn(3, len(slots), HEADS, steps, DIM)
    step = SlicedRingAttention(*stored(together), Batch.of(slots, CPU), starts, steps)
    assert len(step._groups) == 2
    found = step.attend(1, q, k, v)
    single = [KVTensor(data, None) for data in alone]
    for row, slot in enumerate(slots):
        rows = slice(row, row + 1)
        one = SlicedRingAttention(*single, Batch.of([slot], CPU), starts[rows], steps)
        assert torch.equal(one.attend(1, q[rows], k[rows], v[rows]), found[rows])
    for store, data in zip(stored(together), alone, strict=True):
        assert torch.equal(store.data[1, slots], data[1, slots])


@needs_triton
def test_queries_may_have_a_lower_precision_than_the_ring() -> None:
    torch.manual_seed(2)
    outs = []
    for kind in (SlicedRingAttention, MaskedRingAttention, TritonRingAttention):
        torch.manual_seed(2)
        ring, positions = new_ring(torch.float32), torch.tensor([0])
        ring.stored_keys.zero_()
        ring.stored_values.zero_()
        q, k, v = torch.randn(3, 1, HEADS, 1, DIM, dtype=torch.bfloat16)
        batch = Batch.of([3], CPU)
        rings = (
            kind(*stored(ring), batch, [0], 1)
            if kind is SlicedRingAttention
            else kind(*stored(ring), batch, positions, 1)
        )
        outs.append(rings.attend(1, q, k, v))
        torch.testing.assert_close(ring.keys[1, 3, :, 0], k[0, :, 0].float())
    for out in outs:
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, v)


def test_write_stores_what_steps_store() -> None:
    torch.manual_seed(3)
    keys, values = torch.randn(2, 2, HEADS, WINDOW + 4, DIM)
    stepped, written = new_ring(FP8), new_ring(FP8)
    for position in range(WINDOW + 4):
        now = slice(position, position + 1)
        rings = SlicedRingAttention(*stored(stepped), Batch.of([2], CPU), [position], 1)
        for layer in range(2):
            k, v = keys[layer][None, :, now], values[layer][None, :, now]
            rings.attend(layer, k, k, v)
    written.write(2, 4, keys[:, :, 4:], values[:, :, 4:])
    for one, other in (
        (stepped.stored_keys, written.stored_keys),
        (stepped.stored_values, written.stored_values),
    ):
        assert torch.equal(one[:, 2].bits, other[:, 2].bits)
        assert one.scales is not None and other.scales is not None
        assert torch.equal(one.scales[:, 2], other.scales[:, 2])


def test_memory_of_e4m3_rings() -> None:
    floats, bytes_ = new_ring(torch.bfloat16), new_ring(FP8)
    assert bytes_.nbytes == floats.nbytes * (DIM + 4) / (2 * DIM)


@needs_triton
def test_a_ring_kernel_that_fails_its_check_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipecat_personaplex.kernels import ring_attention_check as attention_check

    ring = (CPU, HEADS, WINDOW, DIM, torch.float32, torch.float32)
    monkeypatch.setattr(availability, "_results", {})
    assert ring_attention_works(*ring)
    monkeypatch.setattr(availability, "_results", {})
    monkeypatch.setattr(attention_check, "attend", lambda plan, q, *_: torch.zeros_like(q))
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    try:
        assert not ring_attention_works(*ring)
        assert not ring_attention_works(*ring)
    finally:
        logger.remove(sink)
    (line,) = lines
    assert line.startswith(
        "the ring attention kernel (2 heads of 8, window 7, float32 with keys and values in "
        "float32) is not available on cpu: ArithmeticError: "
    )
    assert "numbers differ" in line
    assert line.endswith("; PyTorch attends to whole rings under a mask, which is slower\n")


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [6, 6, 8], [13, 7]])
def test_prompt_chunks_equal_one_banded_causal_pass(chunks: list[int]) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, HEADS, 20, DIM) for _ in range(3))
    cache = PromptKVCache(
        layers=1,
        heads=HEADS,
        length=20,
        window=WINDOW,
        head_dim=DIM,
        dtype=torch.float32,
        device=CPU,
    )
    got, start = [], 0
    for chunk in chunks:
        run = slice(start, start + chunk)
        view = cache.begin(chunk)
        got.append(view.attend(0, q[:, :, run], k[:, :, run], v[:, :, run]))
        start += chunk
    result = torch.cat(got, dim=2)[0]
    for position in range(20):
        seen = range(max(0, position + 1 - WINDOW), position + 1)
        expected = plain_attention(
            q[0, :, position], [k[0, :, p] for p in seen], [v[0, :, p] for p in seen]
        )
        torch.testing.assert_close(result[:, position], expected)
    assert cache.filled == 20


def test_consecutive_slots_are_a_slice_and_others_a_tensor() -> None:
    assert Batch.of([2, 1, 3], CPU).rows == slice(1, 4)
    scattered = Batch.of([4, 0], CPU)
    assert scattered.slots == (0, 4)
    assert isinstance(scattered.rows, Tensor)
    assert scattered.rows.tolist() == [0, 4]
