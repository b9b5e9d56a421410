"""The simulated fleet: Erlang's laws, conservation of calls, drains and failures."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipecat_personaplex.bench.erlang import erlang_b, erlang_c, load_for, slots_for
from pipecat_personaplex.bench.fleet import CallModel, Counts, Fleet, GpuModel, Phase

EXPONENTIAL = CallModel(mean_seconds=60, sigma=0)
WARM_UP = Phase("warm-up", 2_000)


def simulate(
    gpu: GpuModel,
    calls: CallModel = EXPONENTIAL,
    *,
    load: float,
    gpus: int = 1,
    domain: int = 1,
    seconds: float = 400_000,
    seed: int = 1,
) -> tuple[Counts, Fleet]:
    fleet = Fleet(gpu, gpus=gpus, domain=domain, calls=calls, load=load, seed=seed)
    return fleet.run([WARM_UP, Phase("steady", seconds)])["steady"], fleet


@pytest.mark.parametrize(
    ("load", "slots", "refused"), [(10, 10, 0.2146), (5, 5, 0.2849), (1, 1, 0.5), (2, 8, 0.0009)]
)
def test_erlang_b_has_the_values_of_its_tables(load: float, slots: int, refused: float) -> None:
    assert erlang_b(load, slots) == pytest.approx(refused, abs=5e-5)


def test_erlang_c_has_the_values_of_its_tables() -> None:
    assert erlang_c(8, 10) == pytest.approx(0.4092, abs=5e-5)
    assert erlang_c(10, 10) == 1


@pytest.mark.parametrize("slots", [1, 7, 64, 4_000])
def test_load_and_slots_are_inverse(slots: int) -> None:
    load = load_for(slots, 0.01)
    assert erlang_b(load, slots) == pytest.approx(0.01, rel=1e-3)
    assert slots_for(load * (1 - 1e-6), 0.01) == slots


@pytest.mark.parametrize(("gpus", "sigma"), [(1, 0.0), (5, 1.0)])
def test_refused_calls_follow_erlang_b_for_any_lengths(gpus: int, sigma: float) -> None:
    """Erlang B holds for any distribution of lengths, and for slots on any number of GPUs."""
    counts, _ = simulate(
        GpuModel(slots=10 // gpus), CallModel(60, sigma), load=8, gpus=gpus, seed=3
    )
    expected = erlang_b(8, 10)
    assert counts.refused / counts.arrivals == pytest.approx(expected, rel=0.06)
    # Little's law: calls at once are the accepted calls a second times their length.
    busy = counts.busy_seconds / 400_000
    assert busy == pytest.approx(8 * (1 - expected), rel=0.03)


def test_waiting_calls_follow_erlang_c() -> None:
    patient = replace(EXPONENTIAL, patience=math.inf)
    counts, _ = simulate(GpuModel(slots=10), patient, load=8)
    assert counts.refused == 0
    assert counts.waited / counts.arrivals == pytest.approx(erlang_c(8, 10), rel=0.06)
    # The mean wait of all calls is C * length / (slots - load).
    mean = sum(counts.slot_wait) / counts.arrivals
    # Waits that follow one another are alike, so 53,000 calls are few: the bound is generous.
    assert mean == pytest.approx(erlang_c(8, 10) * 60 / 2, rel=0.25)


def test_impatient_callers_give_up() -> None:
    patience = replace(EXPONENTIAL, patience=5.0)
    counts, _ = simulate(GpuModel(slots=10), patience, load=8, seconds=50_000)
    assert max(counts.slot_wait) <= 5
    assert 0 < counts.refused / counts.arrivals < erlang_b(8, 10)


PROMPTED = GpuModel(
    slots=20,
    step_ms=10,
    step_ms_per_call=1,
    prefill_frames_per_second=1_000,
    cached_ms=2,
    cached_prompts=4,
    replay_after=100,
    replay_every=30,
    replay_frames=500,
    moved_frames=800,
)
CALLS = CallModel(mean_seconds=120, sigma=1.0, personas=10, prompt_frames=300)


def test_no_call_is_lost_from_the_books() -> None:
    fleet = Fleet(PROMPTED, gpus=6, domain=2, calls=CALLS, load=90, seed=5)
    phases = [
        Phase("one", 3_000),
        Phase("two", 900, "drain"),
        Phase("three", 300),
        Phase("four", 300, "fail"),
    ]
    counts = fleet.run(phases)
    total = {
        name: sum(getattr(part, name) for part in counts.values())
        for name in ("arrivals", "refused", "completed", "lost")
    }
    ended = total["refused"] + total["completed"] + total["lost"]
    assert total["arrivals"] == ended + fleet.active + fleet.waiting
    assert min(total["completed"], counts["four"].moved) > 0


def test_a_drained_domain_takes_no_calls_and_loses_none() -> None:
    fleet = Fleet(PROMPTED, gpus=4, domain=2, calls=CALLS, load=40, seed=2)
    counts = fleet.run([WARM_UP, Phase("drain", 20_000, "drain"), Phase("after", 2_000)])
    drain = counts["drain"]
    assert 10 < len(drain.drain_wait) < drain.active_before
    assert 60 < max(drain.drain_wait) < 20_000
    assert drain.lost == drain.moved == 0
    # Half of the slots remain for 40 callers.
    assert drain.refused / drain.arrivals == pytest.approx(erlang_b(40, 40), abs=0.05)
    assert drain.busy_seconds / 20_000 < 40
    assert counts["after"].refused < drain.refused / 10


def test_calls_of_a_failed_domain_move_if_there_is_room() -> None:
    roomy = Fleet(PROMPTED, gpus=8, domain=2, calls=CALLS, load=60, seed=4)
    failure = roomy.run([WARM_UP, Phase("fail", 100, "fail")])["fail"]
    assert failure.lost == 0
    assert failure.moved == pytest.approx(60 / 4, abs=8)
    # At least the second until it is noticed; the replays of one GPU run one after the other.
    assert 1 < min(failure.move_wait) < max(failure.move_wait) < 10
    full = Fleet(PROMPTED, gpus=2, domain=1, calls=CALLS, load=80, seed=4)
    failure = full.run([WARM_UP, Phase("fail", 100, "fail")])["fail"]
    assert failure.lost > 10


def test_prompts_come_from_the_cache_if_it_has_them() -> None:
    some, _ = simulate(PROMPTED, CALLS, load=10, seconds=20_000)
    all_, _ = simulate(replace(PROMPTED, cached_prompts=10), CALLS, load=10, seconds=20_000)
    one = replace(CALLS, personas=1)
    single, _ = simulate(PROMPTED, one, load=10, seconds=20_000)
    assert 0.3 < some.hits / some.arrivals < 0.95
    # Ten prompts were computed in the warm-up already.
    assert all_.hits == len(all_.join_wait)
    assert single.hits == len(single.join_wait)
    # 300 frames at 1,000 a second, in the time that a step of at most 20 calls leaves.
    assert 0.3 < max(some.join_wait)
    assert min(some.join_wait) < 0.01


def test_replays_follow_the_length_of_calls() -> None:
    """Calls of an exponential length have a first replay with probability exp(-100 / 60)."""
    calls = replace(EXPONENTIAL, personas=1)
    counts, _ = simulate(replace(PROMPTED, slots=1_000), calls, load=10, seconds=100_000)
    # Memoryless: after the first, further ones follow with probability exp(-30 / 60).
    each = math.exp(-100 / 60) / (1 - math.exp(-30 / 60))
    assert len(counts.replay_wait) / counts.arrivals == pytest.approx(each, rel=0.05)


def test_the_same_seed_gives_the_same_calls() -> None:
    one, _ = simulate(PROMPTED, CALLS, load=15, seconds=2_000, seed=9)
    two, _ = simulate(PROMPTED, CALLS, load=15, seconds=2_000, seed=9)
    other, _ = simulate(PROMPTED, CALLS, load=15, seconds=2_000, seed=8)
    assert one == two != other
