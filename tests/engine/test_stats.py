"""Step counters."""

from __future__ import annotations

from pipecat_personaplex.engine.stats import STEP_BOUNDS_MS, Counters


def test_each_step_is_counted_below_its_upper_bound() -> None:
    counters = Counters()
    for ms in (0.1, 5.0, 5.1, 79.9, 80.0, 80.1, 320.0, 1000.0):
        counters.count_step(ms / 1e3)
    by_bound = dict(zip((*STEP_BOUNDS_MS, "beyond"), counters.step_histogram, strict=True))
    assert {bound: count for bound, count in by_bound.items() if count} == {
        5: 2,
        10: 1,
        80: 2,
        100: 1,
        320: 1,
        "beyond": 1,
    }
    assert counters.steps == 8
    assert abs(counters.step_seconds_total - 1.5703) < 1e-4


def test_without_steps_the_percentile_is_zero() -> None:
    assert Counters().recent_step_ms(99) == 0.0
