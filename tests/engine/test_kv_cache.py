"""The ring attentions against attention spelled out position by position."""

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
from pipecat_personaplex.kernels.availability import _kernels_run, have_triton
from pipecat_personaplex.quantization.kv import FP8, KVTensor

CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(not have_triton(), reason="Triton is for Linux")
HEADS, DIM, WINDOW, SLOTS = 2, 8, 7, 5


def plain_attention(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query [H, D] over the positions given, each [H, D]."""
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
    # Whatever is read before it was written shows.
    for store in (ring.kept_keys, ring.kept_values):
        if store.scales is None:
            store.data.fill_(torch.nan)
        else:
            store.bits.zero_()
            store.scales.fill_(torch.nan)
    return ring


def as_kept(x: Tensor, kv_dtype: torch.dtype) -> Tensor:
    """What of ``x`` is left once it has been in a ring."""
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
def test_ring_attention_sees_the_window_and_nothing_else(
    kind: type, kv_dtype: torch.dtype, steps: int, slots: list[int]
) -> None:
    torch.manual_seed(0)
    ring = new_ring(kv_dtype)
    if kind is MaskedRingAttention:  # masked places are read, and weigh nothing
        ring.kept_keys.zero_()
        ring.kept_values.zero_()
    # The interpreter cuts what a GPU rounds to bfloat16.
    close = {"atol": 2e-2, "rtol": 2e-2} if kv_dtype == torch.bfloat16 else {}
    batch = Batch.of(slots, CPU)
    # Rows start at different positions: their rings wrap at different times.
    ages = {slot: 3 * row + 2 for row, slot in enumerate(slots)}
    history: dict[int, list[tuple[Tensor, Tensor]]] = {slot: [] for slot in slots}
    for slot, age in ages.items():
        for position in range(age):
            k, v = torch.randn(2, HEADS, DIM), torch.randn(2, HEADS, DIM)
            ring.write(slot, position, k[:, :, None], v[:, :, None])
            history[slot].append((as_kept(k, kv_dtype), as_kept(v, kv_dtype)))
    # The interpreter takes its time; the oldest ring goes round in it all the same.
    frames = 4 if kind is TritonRingAttention else 3 * WINDOW // steps
    for _ in range(frames):
        starts = [len(history[slot]) for slot in slots]
        shape = (2, len(slots), HEADS, steps, DIM)
        q, k, v = torch.randn(shape), torch.randn(shape), torch.randn(shape)
        view = (
            kind(ring, batch, starts, steps)
            if kind is SlicedRingAttention
            else kind(ring, batch, torch.tensor(starts), steps)
        )
        got = [view.attend(layer, q[layer], k[layer], v[layer]) for layer in range(2)]
        for row, slot in enumerate(slots):
            for step in range(steps):
                new = k[:, row, :, step], v[:, row, :, step]
                history[slot].append((as_kept(new[0], kv_dtype), as_kept(new[1], kv_dtype)))
            end = len(history[slot])
            for step in range(steps):
                position = end - steps + step
                # The whole frame is in the ring: what its last position replaced is gone.
                seen = history[slot][max(0, end - WINDOW) : position + 1]
                for layer in range(2):
                    expected = plain_attention(
                        q[layer, row, :, step],
                        [entry[0][layer] for entry in seen],
                        [entry[1][layer] for entry in seen],
                    )
                    torch.testing.assert_close(got[layer][row, :, step], expected, **close)


@needs_triton
def test_a_ring_takes_queries_of_a_lower_precision() -> None:
    torch.manual_seed(2)
    outs = []
    for kind in (SlicedRingAttention, MaskedRingAttention, TritonRingAttention):
        torch.manual_seed(2)
        ring, positions = new_ring(torch.float32), torch.tensor([0])
        ring.kept_keys.zero_()
        ring.kept_values.zero_()
        q, k, v = torch.randn(3, 1, HEADS, 1, DIM, dtype=torch.bfloat16)
        batch = Batch.of([3], CPU)
        rings = (
            kind(ring, batch, [0], 1)
            if kind is SlicedRingAttention
            else kind(ring, batch, positions, 1)
        )
        outs.append(rings.attend(1, q, k, v))
        torch.testing.assert_close(ring.keys[1, 3, :, 0], k[0, :, 0].float())
    for out in outs:
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, v)


def test_a_prefix_is_kept_as_steps_are() -> None:
    torch.manual_seed(3)
    keys, values = torch.randn(2, 2, HEADS, WINDOW + 4, DIM)
    stepped, laid = new_ring(FP8), new_ring(FP8)
    for position in range(WINDOW + 4):
        place = slice(position, position + 1)
        rings = SlicedRingAttention(stepped, Batch.of([2], CPU), [position], 1)
        for layer in range(2):
            k, v = keys[layer][None, :, place], values[layer][None, :, place]
            rings.attend(layer, k, k, v)
    laid.write(2, 4, keys[:, :, 4:], values[:, :, 4:])
    for one, other in (
        (stepped.kept_keys, laid.kept_keys),
        (stepped.kept_values, laid.kept_values),
    ):
        assert torch.equal(one[:, 2].bits, other[:, 2].bits)
        assert one.scales is not None and other.scales is not None
        assert torch.equal(one.scales[:, 2], other.scales[:, 2])


def test_what_8_bits_take() -> None:
    floats, bytes_ = new_ring(torch.bfloat16), new_ring(FP8)
    assert bytes_.nbytes == floats.nbytes * (DIM + 4) / (2 * DIM)


@needs_triton
def test_kernels_that_fail_their_check_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipecat_personaplex.kernels import ring_attention_check as attention_check

    ring = (CPU, HEADS, WINDOW, DIM, torch.float32, torch.float32)
    assert _kernels_run.__wrapped__(*ring)
    monkeypatch.setattr(attention_check, "attend", lambda plan, q, *_: torch.zeros_like(q))
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    try:
        assert not _kernels_run(*ring)
        assert not _kernels_run(*ring)
    finally:
        logger.remove(sink)
        _kernels_run.cache_clear()
    (line,) = lines
    assert "no attention kernel on cpu" in line and "numbers differ" in line


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [6, 6, 8], [13, 7]])
def test_a_prompt_in_runs_is_a_banded_causal_pass(chunks: list[int]) -> None:
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


def test_neighbouring_slots_are_a_view_and_others_a_gather() -> None:
    assert Batch.of([2, 1, 3], CPU).rows == slice(1, 4)
    scattered = Batch.of([4, 0], CPU)
    assert scattered.slots == (0, 4)
    assert isinstance(scattered.rows, Tensor)
    assert scattered.rows.tolist() == [0, 4]
