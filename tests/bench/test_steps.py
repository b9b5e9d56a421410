"""Steps in real time: which frames are late."""

from __future__ import annotations

import pytest
import torch

from pipecat_personaplex.bench import steps
from tests.bench.fakes import FakeClock

CPU = torch.device("cpu")


def test_a_slow_step_makes_the_next_ones_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    durations = iter([0.02, 0.2, 0.02, 0.02, 0.02])

    def step() -> None:
        clock.sleep(next(durations))

    monkeypatch.setattr(steps, "time", clock)
    report, seconds = steps.soak(step, 5 * 0.08 / 60, CPU)
    # Frames arrive at 0, 80, 160, 240, 320 ms and are done at 20, 280, 300, 320, 340 ms.
    assert (report["steps"], report["late"]) == (5, 2)
    assert report["max_ms"] == 200 and report["p50_ms"] == 80
    assert seconds == pytest.approx([0.02, 0.2, 0.02, 0.02, 0.02])
