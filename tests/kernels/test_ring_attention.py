"""The ring attention kernels against PyTorch's attention in float32; on a GPU if there is one."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.kernels.ring_attention import Workspace, attend
from pipecat_personaplex.kernels.ring_attention_check import check
from pipecat_personaplex.kernels.ring_ops import RingPlan
from pipecat_personaplex.kernels.rotary import RotaryCosSin
from pipecat_personaplex.models.attention import rotary_frequencies, rotate, rotation
from pipecat_personaplex.quantization.fp8 import FP8
from pipecat_personaplex.quantization.kv import KVTensor, quantize

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
F32, BF16 = torch.float32, torch.bfloat16
KV_DTYPES = [F32, BF16, FP8]


class Rings:
    """The rings of one layer. Unwritten indices hold NaN."""

    def __init__(
        self, slots: int, heads: int, window: int, head_dim: int, kv_dtype: torch.dtype
    ) -> None:
        self.plan = RingPlan.of(heads, window, head_dim, kv_dtype)
        shape = (slots, heads, window, head_dim)
        self.keys = KVTensor.new(shape, kv_dtype, DEVICE, zeros=True)
        self.values = KVTensor.new(shape, kv_dtype, DEVICE, zeros=True)
        for store in (self.keys, self.values):
            unwritten = store.data if store.scales is None else store.scales
            unwritten.fill_(torch.nan)

    def fill(self, slot: int, position: int) -> None:
        """Fill a slot's ring with noise, so that ``position`` is its next position."""
        filled = min(position, self.plan.window)
        for store in (self.keys, self.values):
            new = torch.randn(self.plan.heads, filled, self.plan.head_dim, device=DEVICE)
            store.put((slot, slice(None), slice(filled)), new)

    def step(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slots: list[int],
        starts: list[int],
        rotary: RotaryCosSin | None = None,
    ) -> Tensor:
        rows = torch.tensor(slots, device=DEVICE), torch.tensor(starts, device=DEVICE)
        workspace = Workspace.of(self.plan, len(slots) * q.shape[2], DEVICE)
        for part in workspace:  # so that a read of unwritten memory shows
            part.fill_(torch.nan)
        return attend(self.plan, q, k, v, self.keys, self.values, *rows, workspace, rotary)

    def expected(self, q: Tensor, slot: int, start: int) -> Tensor:
        """Attention of one row [H, T, D] over the ring's current content."""
        steps, window = q.shape[1], self.plan.window
        filled = min(start + steps, window)
        mask = torch.ones(steps, filled, dtype=torch.bool, device=DEVICE)
        for step in range(steps):
            for later in range(step + 1, steps):
                mask[step, (start + later) % window] = False
        keys, values = (
            store[slot, :, :filled].read(F32)[None] for store in (self.keys, self.values)
        )
        return F.scaled_dot_product_attention(q[None].float(), keys, values, attn_mask=mask)[0]


def frame(rows: int, heads: int, steps: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v of a fused projection: views whose features alone are contiguous."""
    fused = torch.randn(rows, steps, 3, heads, head_dim, device=DEVICE).to(dtype)
    return list(fused.permute(2, 0, 3, 1, 4).unbind(0))


def close(got: Tensor, expected: Tensor) -> None:
    # The interpreter truncates to bfloat16 where a GPU rounds.
    limit = 1e-4 if got.dtype == F32 else 2**-7
    torch.testing.assert_close(got.float(), expected, atol=limit, rtol=limit)


@pytest.mark.parametrize(
    ("kv_dtype", "head_dim"), [(F32, 64), (BF16, 64), (BF16, 128), (FP8, 64), (FP8, 128)], ids=str
)
def test_rings_of_every_length(kv_dtype: torch.dtype, head_dim: int) -> None:
    torch.manual_seed(0)
    window = 399  # several splits, and a last block that is not full
    rings = Rings(9, 1, window, head_dim, kv_dtype)
    assert rings.plan.splits > 2 and window % rings.plan.block
    block, anywhere = rings.plan.block, random.Random(head_dim).randrange(1, window)
    # Empty, around a block's edge, anywhere, just full, and wrapped at a position past 2**31.
    starts = [0, block - 1, block, anywhere, window - 1, (1 << 33) + 17]
    slots = [5, 0, 8, 2, 7, 1]
    for slot, start in zip(slots, starts, strict=True):
        rings.fill(slot, start)
    q, k, v = frame(len(slots), 1, 1, head_dim, BF16 if kv_dtype == FP8 else kv_dtype)
    got = rings.step(q, k, v, slots, starts)
    for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        close(got[row], rings.expected(q[row], slot, start))


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
def test_rows_do_not_depend_on_the_batch(rows: int, kv_dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    rng = random.Random(rows)
    heads, window, head_dim = 2, 75, 20
    rings = Rings(10, heads, window, head_dim, kv_dtype)
    slots = rng.sample(range(9), rows)
    starts = [rng.choice([0, 31, 32, 74, 75, rng.randrange(300)]) for _ in slots]
    for slot, start in zip(slots, starts, strict=True):
        rings.fill(slot, start)
    q, k, v = frame(rows, heads, 1, head_dim, F32)
    got = rings.step(q, k, v, slots, starts)
    for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        close(got[row], rings.expected(q[row], slot, start))
    row = rng.randrange(rows)
    one = slice(row, row + 1)
    alone = rings.step(q[one], k[one], v[one], slots[one], starts[one])
    assert torch.equal(alone[0], got[row])


@pytest.mark.parametrize("kv_dtype", [F32, FP8], ids=str)
def test_a_frame_of_two_positions(kv_dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    window = 33  # one more than a block: the second position may be alone in its split
    rings = Rings(6, 2, window, 32, kv_dtype)
    slots, starts = [4, 0, 5, 2, 1, 3], [0, 31, 32, 30, 65, 400]
    for slot, start in zip(slots, starts, strict=True):
        rings.fill(slot, start)
    q, k, v = frame(6, 2, 2, 32, F32)
    got = rings.step(q, k, v, slots, starts)
    for row, (slot, start) in enumerate(zip(slots, starts, strict=True)):
        close(got[row], rings.expected(q[row], slot, start))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(("kv_dtype", "head_dim"), [(F32, 20), (FP8, 64)], ids=str)
def test_kernels_rotate_queries_and_keys(kv_dtype: torch.dtype, head_dim: int, steps: int) -> None:
    torch.manual_seed(4)
    rings = Rings(4, 2, 33, head_dim, kv_dtype)
    slots, starts = [2, 0, 3], [5, 32, 400]
    for slot, start in zip(slots, starts, strict=True):
        rings.fill(slot, start)
    q, k, v = frame(3, 2, steps, head_dim, F32)
    positions = torch.tensor(starts, device=DEVICE)[:, None] + torch.arange(steps, device=DEVICE)
    rotary = rotation(positions, rotary_frequencies(head_dim, 10_000, DEVICE))
    got = rings.step(q, k, v, slots, starts, rotary)
    stored = rings.keys.read(F32)
    plain = rings.step(rotate(q, rotary), rotate(k, rotary), v, slots, starts)
    torch.testing.assert_close(got, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stored, rings.keys.read(F32), equal_nan=True)
    assert not torch.allclose(got, rings.step(q, k, v, slots, starts), atol=1e-2)


def test_rows_that_share_the_scratch_slot_affect_no_others() -> None:
    torch.manual_seed(2)
    rings = Rings(3, 2, 40, 16, F32)
    rings.fill(0, 11)
    rings.fill(1, 90)
    q, k, v = frame(5, 2, 1, 16, F32)
    got = rings.step(q, k, v, [1, 2, 0, 2, 2], [90, 0, 11, 0, 0])
    close(got[0], rings.expected(q[0], 1, 90))
    close(got[2], rings.expected(q[2], 0, 11))


@pytest.mark.parametrize("kv_dtype", KV_DTYPES, ids=str)
def test_vectors_are_stored_at_their_ring_index(kv_dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    heads, window, head_dim = 2, 7, 24
    rings = Rings(4, heads, window, head_dim, kv_dtype)
    q, k, v = frame(2, heads, 2, head_dim, F32)
    rings.step(q, k, v, [3, 1], [6, (7 << 40) + 2])  # the first frame wraps from index 6 to 0
    written = {(3, 6): (0, 0), (3, 0): (0, 1), (1, 2): (1, 0), (1, 3): (1, 1)}
    for store, new in ((rings.keys, k), (rings.values, v)):
        for slot in range(4):
            for ring_index in range(window):
                stored = store[slot, :, ring_index]
                if (slot, ring_index) not in written:
                    assert stored.read(F32).isnan().all()
                    continue
                row, step = written[slot, ring_index]
                wanted = new[row, :, step]
                if kv_dtype == FP8:
                    data, scales = quantize(wanted)
                    torch.testing.assert_close(stored.scales, scales)
                    # A GPU divides less exactly, which may change the rounding of a tie.
                    apart = (stored.bits.int() - data.view(torch.uint8).int()).abs()
                    assert apart.max() <= (1 if DEVICE.type == "cuda" else 0)
                else:
                    close(stored.data, wanted)


def test_e4m3_rounds_to_nearest_even() -> None:
    every = torch.arange(128, dtype=torch.uint8, device=DEVICE).view(FP8).float()[:-1]
    between = (every[1:] + every[:-1]) / 2  # ties, to even
    near = torch.cat([between * (1 + 1e-6), between * (1 - 1e-6)])
    numbers = torch.cat([every, between, near, -every, -between])
    tiny = torch.tensor([1e-30, -1e-38, 0.0, 1e-45], device=DEVICE)
    # The largest number of each vector is 448, so that the scale is 1.
    vectors = torch.stack(
        [F.pad(part, (0, 31 - len(part)), value=1.0) for part in numbers.split(31)]
    )
    vectors = F.pad(vectors, (0, 1), value=448.0)
    vectors = torch.cat([vectors, F.pad(tiny, (0, 28))[None], torch.zeros(1, 32, device=DEVICE)])
    rows = len(vectors)
    rings = Rings(rows, 1, 3, 32, FP8)
    new = vectors[:, None, None]
    rings.step(new, new, -new, list(range(rows)), [0] * rows)
    bits, scales = quantize(vectors)
    assert torch.equal(rings.keys.data[:, 0, 0].view(torch.uint8), bits.view(torch.uint8))
    assert rings.keys.scales is not None
    assert torch.equal(rings.keys.scales[:, 0, 0], scales)
    assert torch.equal(rings.values[:, 0, 0].read(F32), -rings.keys[:, 0, 0].read(F32))


def test_nan_is_not_lost_in_quantisation() -> None:
    rings = Rings(1, 1, 4, 16, FP8)
    q = torch.ones(1, 1, 1, 16, device=DEVICE)
    broken = q.clone()
    broken[..., 3] = torch.nan
    assert rings.step(q, q, broken, [0], [0]).isnan().all()


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [(F32, F32), (F32, BF16), (F32, FP8), (BF16, F32), (BF16, BF16), (BF16, FP8)],
    ids=str,
)
def test_check_passes_in_every_precision(dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    check(2, 70, 40, dtype, kv_dtype, DEVICE)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_smallest_windows(window: int) -> None:
    check(1, window, 8, F32, F32, DEVICE)


def test_one_session_fills_a_gpu_and_shares_are_even() -> None:
    plan = RingPlan.of(32, 2_999, 128, BF16)
    assert plan.heads * plan.splits >= 2 * 114  # an H100 PCIe has 114 multiprocessors, an SXM 132
    blocks = -(-plan.window // plan.block)
    share = -(-blocks // plan.splits)
    assert plan.splits * share - blocks < share  # no split is without a share
