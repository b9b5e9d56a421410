"""Sizes a fleet: callers, cost and failure domains, by arithmetic and a simulation.

No card has been measured: a card's callers follow from its memory and its bandwidth by the same
arithmetic as the memory plan, with assumptions that every report repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from pipecat_personaplex.bench.erlang import load_for, slots_for
from pipecat_personaplex.bench.fleet import CallModel, Fleet, GpuModel, Phase
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig, Quantization
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.engine.memory_plan import plan_memory
from pipecat_personaplex.engine.model_bytes import kv_bytes
from pipecat_personaplex.engine.replay import NEARLY_FULL, remembered_frames
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import ModelConfig

_FRAME_MS = FRAME_SECONDS * 1e3
_MAX_CALLS = 200_000
_MAX_GPUS = 20_000
_CHUNK_MS = 25.0
"""Room in a frame for one chunk of a prompt or a replay, which runs between two steps."""

_STEADY, _DRAIN, _FAILURE = "steady", "drain", "failure"


@dataclass(frozen=True)
class Card:
    """A card, as its maker and the market state it; nothing of it is measured here.

    Attributes:
        gib: Free memory in GiB.
        gb_s: Memory bandwidth in GB/s.
        tflops: Dense bfloat16 products in TFLOPS.
        dollars: Assumed price of an hour.
    """

    gib: float
    gb_s: float
    tflops: float
    dollars: float


CARDS = {
    "h200": Card(139, 4_300, 989, 3.50),
    "h100": Card(79, 3_350, 989, 2.50),
    "rtx4090": Card(23.5, 1_008, 165, 0.45),
    "l4": Card(22, 300, 121, 0.70),
}


@dataclass(frozen=True)
class SizingOptions:
    """What to size, and the assumptions.

    Attributes:
        card: A name in ``CARDS``.
        quantization: Format of the weights.
        kv_dtype: Type of the keys and values.
        gpus: Numbers of GPUs to size for.
        callers: Numbers of calls at once, for each of which GPUs are to be found.
        domain: GPUs that fail together, such as those of one machine.
        refused: Accepted share of refused calls.
        calls: How callers behave.
        dollars: Price of a GPU for an hour; None takes the card's.
        bandwidth_efficiency: Part of the card's bandwidth that a step reaches.
        compute_efficiency: Part of the card's products that a prompt reaches.
        fixed_ms: Time of a step that does not read weights, keys or values: codec and launches.
        hours: Simulated steady hours.
        seed: Seed of the simulation.

    Raises:
        ConfigError: A value is out of its range.
    """

    card: str = "h100"
    quantization: Quantization | None = "int8"
    kv_dtype: str = "fp8"
    gpus: Sequence[int] = (1, 8, 64)
    callers: Sequence[int] = (10_000,)
    domain: int = 8
    refused: float = 0.01
    calls: CallModel = field(default_factory=CallModel)
    dollars: float | None = None
    bandwidth_efficiency: float = 0.7
    compute_efficiency: float = 0.4
    fixed_ms: float = 4.0
    hours: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.card not in CARDS:
            raise ConfigError(f"card must be one of {', '.join(CARDS)}, not {self.card!r}")
        for name, counts, most in (
            ("gpus", list(self.gpus), _MAX_GPUS),
            ("domain", [self.domain], _MAX_GPUS),
            ("callers", list(self.callers), _MAX_CALLS),
        ):
            if any(not 1 <= count <= most for count in counts):
                raise ConfigError(f"{name} must be from 1 to {most:,}, not {counts}")
        if not (self.gpus or self.callers):
            raise ConfigError("give numbers of gpus, of callers, or both")
        for name, value, low, high in (
            ("refused", self.refused, 1e-4, 0.5),
            ("bandwidth efficiency", self.bandwidth_efficiency, 0.05, 1.0),
            ("compute efficiency", self.compute_efficiency, 0.01, 1.0),
            ("fixed milliseconds", self.fixed_ms, 0.0, 70.0),
            ("hours", self.hours, 0.05, 24.0),
            ("mean seconds of a call", self.calls.mean_seconds, 5.0, 86_400.0),
            ("spread of the lengths", self.calls.sigma, 0.0, 3.0),
            ("personas", self.calls.personas, 1, 100_000),
            ("prompt frames", self.calls.prompt_frames, 2, 2_000),
            ("patience", self.calls.patience, 0.0, 3_600.0),
            ("dollars", self.card_price, 0.0, 1_000.0),
        ):
            if not low <= value <= high:  # also refuses NaN
                raise ConfigError(f"{name} must be from {low:g} to {high:g}, not {value:g}")

    @property
    def card_price(self) -> float:
        """Dollars for an hour of one GPU."""
        return CARDS[self.card].dollars if self.dollars is None else self.dollars


@dataclass(frozen=True)
class CardCapacity:
    """What one GPU holds.

    Attributes:
        by_memory: Calls that fit into its memory.
        by_time: Calls whose step, with full windows, leaves room for a chunk of a prompt.
        gpu: The GPU for the simulation, with the smaller number of slots.
    """

    by_memory: int
    by_time: int
    gpu: GpuModel


def card_capacity(options: SizingOptions) -> CardCapacity:
    """Compute the callers of one card.

    Raises:
        ConfigError: Not one call fits.
    """
    card, architecture = CARDS[options.card], ModelConfig()
    lm = architecture.lm
    # Not plan_engine: it queries the card, and this machine may have none.
    plan = plan_memory(
        architecture,
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
        quantization=options.quantization,
        kv_dtype=options.kv_dtype,
        window=lm.window,
        slots=DEFAULT_MAX_SESSIONS,
        prompt_bytes=EngineConfig.prefix_cache_bytes,
    )
    by_memory = plan.fitting_slots(int(card.gib * 2**30))
    bytes_a_ms = card.gb_s * 1e6 * options.bandwidth_efficiency
    weights_ms = options.fixed_ms + plan.weights / bytes_a_ms
    call_ms = kv_bytes(lm, lm.window, plan.kv_dtype) / bytes_a_ms
    by_time = max(0, math.floor((_FRAME_MS - _CHUNK_MS - weights_ms) / call_ms))
    slots = min(by_memory, by_time)
    if slots < 1:
        raise ConfigError(
            f"{options.card} runs no call in time by these assumptions: a step of one takes "
            f"{weights_ms + call_ms:.0f} ms, {by_memory} fit into its memory"
        )
    # Two operations for each weight and position.
    weights = lm.num_layers * (4 * lm.dim**2 + 3 * lm.dim * lm.hidden)
    rate = card.tflops * 1e12 * options.compute_efficiency / (2 * weights)
    prompt = options.calls.prompt_frames
    # As the engine's ``keep_persona``; a call that moves takes along all that it may.
    remembered = remembered_frames(prompt, lm.window, lm.window // 2)
    nearly_full = NEARLY_FULL * lm.window
    cached = EngineConfig.prefix_cache_bytes // kv_bytes(lm, prompt, "bfloat16")
    gpu = GpuModel(
        slots=slots,
        step_ms=weights_ms,
        step_ms_per_call=call_ms,
        prefill_frames_per_second=rate,
        cached_ms=2.0,
        cached_prompts=cached,
        replay_after=(nearly_full - prompt) * FRAME_SECONDS,
        replay_every=(nearly_full - prompt - remembered) * FRAME_SECONDS,
        replay_frames=prompt + remembered,
        moved_frames=prompt + remembered_frames(prompt, lm.window),
    )
    return CardCapacity(by_memory, by_time, gpu)


def size(options: SizingOptions) -> dict[str, Any]:
    """Size every fleet of the options.

    Returns:
        The assumptions, the card's capacity, and a row for each fleet.
    """
    capacity = card_capacity(options)
    slots = capacity.gpu.slots
    fleets = [(count, _spare(count, options)) for count in options.gpus]
    for callers in options.callers:
        needed = math.ceil(slots_for(callers, options.refused) / slots)
        # One domain more than needed: one may fail, or be drained, at any time.
        whole = math.ceil(needed / options.domain) * options.domain
        spare = options.domain if needed > options.domain else 0
        fleets.append((whole + spare if spare else needed, spare))
    rows = []
    for index, (gpus, spare) in enumerate(fleets):
        usable = (gpus - spare) * slots
        requested = index - len(options.gpus)
        load = options.callers[requested] if requested >= 0 else load_for(usable, options.refused)
        rows.append(_row(options, capacity.gpu, gpus, spare, float(load)))
    card = {"name": options.card, **asdict(CARDS[options.card])}
    return {
        "assumptions": {**asdict(options), "dollars": options.card_price, "card": card},
        "card": {
            "by_memory": capacity.by_memory,
            "by_time": capacity.by_time,
            **asdict(capacity.gpu),
        },
        "fleets": rows,
    }


def _spare(gpus: int, options: SizingOptions) -> int:
    """GPUs that are held back, so that one domain may be missing."""
    return options.domain if gpus >= 2 * options.domain else 0


def _row(
    options: SizingOptions, gpu: GpuModel, gpus: int, spare: int, load: float
) -> dict[str, Any]:
    """Simulate one fleet: a steady time, a drain and a failure of one domain."""
    domain = min(options.domain, gpus)
    mean = options.calls.mean_seconds
    phases = [
        Phase("warm-up", 6 * mean),
        Phase(_STEADY, options.hours * 3600),
        Phase(_DRAIN, 4 * mean, "drain"),
        Phase("after the drain", 6 * mean),
        Phase(_FAILURE, 2 * mean, "fail"),
    ]
    fleet = Fleet(gpu, gpus=gpus, domain=domain, calls=options.calls, load=load, seed=options.seed)
    counts = fleet.run(phases)
    steady, drain, failure = (counts[name] for name in (_STEADY, _DRAIN, _FAILURE))
    busy = steady.busy_seconds / (options.hours * 3600)
    cost = gpus * options.card_price
    return {
        "gpus": gpus,
        "spare_gpus": spare,
        "slots": gpus * gpu.slots,
        "domains": math.ceil(gpus / domain),
        "offered_callers": round(load, 1),
        "mean_callers": round(busy, 1),
        "calls_an_hour": round(steady.arrivals / options.hours),
        "refused": _share(steady.refused, steady.arrivals),
        "dollars_an_hour": round(cost, 2),
        "dollars_a_caller_hour": round(cost / busy, 4) if busy else None,
        "prefix_hits": _share(steady.hits, len(steady.join_wait)),
        "join_ms": _percentiles(steady.join_wait),
        "replays_an_hour": round(len(steady.replay_wait) / options.hours),
        "replay_ms": _percentiles(steady.replay_wait),
        "drain_minutes": _drain_minutes(drain.drain_wait),
        "refused_while_draining": _share(drain.refused, drain.arrivals),
        "hit_by_failure": _share(failure.moved + failure.lost, failure.active_before),
        "lost_of_hit": _share(failure.lost, failure.moved + failure.lost),
        "move_ms": _percentiles(failure.move_wait),
        "refused_after_failure": _share(failure.refused, failure.arrivals),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _drain_minutes(seconds: list[float]) -> dict[str, float] | None:
    """Minutes until 99 % of the calls of a drained domain have ended, and all; None without."""
    if not seconds:
        return None
    most, all_ = np.percentile(seconds, (99, 100)) / 60
    return {"p99": round(float(most), 1), "all": round(float(all_), 1)}


def _percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Median and 99th percentile in milliseconds; None without values."""
    if not seconds:
        return None
    p50, p99 = np.percentile(seconds, (50, 99)) * 1e3
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
