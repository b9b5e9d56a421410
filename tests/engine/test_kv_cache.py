"""Both ring attentions against attention spelled out position by position."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipecat_personaplex.engine.kv_cache import (
    Batch,
    RingCache,
    RunCache,
    _FilledRings,
    _MaskedRings,
)

CPU = torch.device("cpu")
HEADS, DIM, WINDOW, SLOTS = 2, 8, 7, 5


def plain_attention(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """One query [H, D] over the positions given, each [H, D]."""
    k, v = torch.stack(keys, dim=1), torch.stack(values, dim=1)
    weights = (torch.einsum("hd,htd->ht", q, k) / math.sqrt(DIM)).softmax(dim=-1)
    return torch.einsum("ht,htd->hd", weights, v)


def new_ring() -> RingCache:
    ring = RingCache(
        layers=2,
        slots=SLOTS,
        heads=HEADS,
        window=WINDOW,
        head_dim=DIM,
        dtype=torch.float32,
        device=CPU,
    )
    ring.keys.fill_(torch.nan)  # whatever is read before it was written shows
    ring.values.zero_()
    return ring


@pytest.mark.parametrize("kind", [_FilledRings, _MaskedRings])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("slots", [[0], [1, 2, 3], [0, 2, 4]])
def test_ring_attention_sees_the_window_and_nothing_else(
    kind: type, steps: int, slots: list[int]
) -> None:
    torch.manual_seed(0)
    ring = new_ring()
    if kind is _MaskedRings:
        ring.keys.zero_()  # masked places are read, and weigh nothing
    batch = Batch.of(slots, CPU)
    # Rows start at different positions: their rings wrap at different times.
    ages = {slot: 3 * row for row, slot in enumerate(slots)}
    history: dict[int, list[tuple[Tensor, Tensor]]] = {slot: [] for slot in slots}
    for slot, age in ages.items():
        for position in range(age):
            k, v = torch.randn(2, HEADS, DIM), torch.randn(2, HEADS, DIM)
            ring.write(slot, position, k[:, :, None], v[:, :, None])
            history[slot].append((k, v))
    for _ in range(3 * WINDOW // steps):
        starts = [len(history[slot]) for slot in slots]
        shape = (2, len(slots), HEADS, steps, DIM)
        q, k, v = torch.randn(shape), torch.randn(shape), torch.randn(shape)
        view = (
            kind(ring, batch, starts, steps)
            if kind is _FilledRings
            else kind(ring, batch, torch.tensor(starts), steps)
        )
        got = [view.attend(layer, q[layer], k[layer], v[layer]) for layer in range(2)]
        for row, slot in enumerate(slots):
            for step in range(steps):
                history[slot].append((k[:, row, :, step], v[:, row, :, step]))
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
                    torch.testing.assert_close(got[layer][row, :, step], expected)


@pytest.mark.parametrize("chunks", [[20], [1] * 20, [6, 6, 8], [13, 7]])
def test_a_prompt_in_runs_is_a_banded_causal_pass(chunks: list[int]) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, HEADS, 20, DIM) for _ in range(3))
    cache = RunCache(
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
