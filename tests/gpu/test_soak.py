"""Ten minutes of sessions that join and leave: no memory leak, constant step time."""

from __future__ import annotations

import gc
import resource
import time

import numpy as np
import pytest
import torch

from pipecat_personaplex.constants import FRAME_SECONDS
from tests.gpu.machine import (
    DEVICE,
    ON_CUDA,
    needs_device,
    new_runner,
    noise,
    params,
    prefix,
    stepped,
)

pytestmark = [*needs_device, pytest.mark.slow]

_FRAMES = int(600 / FRAME_SECONDS)
_SLOTS = 12
_DTYPE = torch.bfloat16


def used_bytes() -> int:
    """Allocated device memory in bytes; 0 on a CPU."""
    gc.collect()
    if ON_CUDA:
        torch.cuda.synchronize(DEVICE)
        return torch.cuda.memory_allocated(DEVICE)
    return 0


def test_ten_minutes_of_sessions_that_join_and_leave() -> None:
    """Sessions of 40 to 400 frames, not in real time; at most one frame in 1,000 is late."""
    runner = new_runner(_DTYPE, _SLOTS, graphs=True)
    generator = torch.Generator().manual_seed(1)
    live: dict[int, int] = {}
    audio = noise(50, _SLOTS)
    seconds = []
    settled = reserved = resident = 0
    for tick in range(_FRAMES):
        for slot in [slot for slot, end in live.items() if end == tick]:
            del live[slot]
        if not live or (len(live) < _SLOTS and tick % 11 == 0):
            slot = min(set(range(_SLOTS)) - set(live))
            runner.join(slot, prefix(_DTYPE, tick % 3), params(tick))
            live[slot] = tick + 40 + int(torch.randint(0, 360, (1,), generator=generator))
        slots = sorted(live)
        began = time.perf_counter()
        stepped(runner, slots, audio[tick % 50, : len(slots)])
        seconds.append(time.perf_counter() - began)
        if tick == _FRAMES // 5:
            settled = used_bytes()
            reserved = torch.cuda.memory_reserved(DEVICE) if ON_CUDA else 0
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert used_bytes() <= settled
    if ON_CUDA:
        assert torch.cuda.memory_reserved(DEVICE) <= reserved
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    assert grown < 64 << 10, f"the process took {grown >> 10} MiB more"
    parts = np.array_split(np.array(seconds), 10)
    early, late = np.median(parts[2]), np.median(parts[-1])
    assert late < 1.5 * early, f"steps went from {early * 1e3:.2f} to {late * 1e3:.2f} ms"
    too_late = sum(second > FRAME_SECONDS for second in seconds[len(seconds) // 10 :])
    assert too_late <= len(seconds) / 1000
