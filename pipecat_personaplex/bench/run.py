"""Measure and report.

Speed does not depend on the values of the weights, so ``--random-1b`` and ``--random-7b`` measure
what no checkpoint is at hand for, and the report says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from pipecat_personaplex.bench.bandwidth import copy_bandwidth, measure_bandwidth
from pipecat_personaplex.bench.calls import load_served, window_of
from pipecat_personaplex.bench.machine import describe_machine, used_bytes
from pipecat_personaplex.bench.models import RANDOM_MODELS, read_architecture
from pipecat_personaplex.bench.options import BenchOptions, Fill
from pipecat_personaplex.bench.parts import measure_parts
from pipecat_personaplex.bench.peer import measure_peer
from pipecat_personaplex.bench.prompts import measure_prompts
from pipecat_personaplex.bench.steps import measure_steps
from pipecat_personaplex.bench.timing import release
from pipecat_personaplex.engine.memory_plan import (
    MemoryPlan,
    available_bytes,
    plan_engine,
    require_memory,
)
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.device import Target, resolve_target


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        report: What the command prints as its last line.
        step_seconds: Of every timed step, by number of callers.
    """

    report: dict[str, Any]
    step_seconds: dict[int, list[float]] = field(default_factory=dict)


def run(options: BenchOptions, say: Callable[[str], None]) -> Result:
    """Measure what the options say.

    Args:
        options: What to measure.
        say: Takes lines for a person.

    Raises:
        ConfigError: The device cannot be used, or has too little memory.
        CheckpointError: The model cannot be loaded.
    """
    engine = options.engine
    target = resolve_target(engine.device, engine.dtype, engine.quantization)
    device = target.device
    config = read_architecture(options.model).with_context(engine.context)
    fill = Fill.of(options, config.lm.window, config.mimi.window)
    plan = _plan(options, target, config)
    say(f"memory in GiB: {plan.describe(available_bytes(device))}")
    require_memory(plan, device, max(options.sessions) if options.fill == "full" else 1)

    before, begin = used_bytes(device), time.perf_counter()
    served = load_served(options.model, engine)
    load_seconds, loaded = time.perf_counter() - begin, used_bytes(device) - before
    filled = min(fill.positions, window_of(served))
    report: dict[str, Any] = {
        "model": options.model,
        **describe_machine(device),
        "dtype": str(served.lm.dtype).removeprefix("torch."),
        "quantization": plan.quantization,
        "kv_dtype": plan.kv_dtype,
        "window": window_of(served),
        "filled": filled,
        "frames": options.frames,
        "load_seconds": round(load_seconds, 3),
    }
    say(
        f"{options.model} on {report['device']}, {report['threads']} threads, torch "
        f"{report['torch']}, {report['dtype']}, quantization {report['quantization'] or 'none'}, "
        f"keys and values in {report['kv_dtype']}"
    )
    if options.model in RANDOM_MODELS:
        say("weights are random: the speed is the model's, the sound is noise")
    if "prompts" in options.measure:
        report["prefill"] = measure_prompts(served, options, device, say)
        release(device)
    result = Result(report)
    if "steps" in options.measure:
        say(f"steps with {filled:,} of {window_of(served):,} frames of each window filled")
        report["sessions"], seconds = measure_steps(served, options, fill, device, say)
        result.step_seconds.update(seconds)
        _compare_batches(report, say)
    report["memory"] = {
        "model_bytes": loaded,
        "slot_bytes": plan.per_slot,
        "plan": plan.as_dict(),
    }
    say(
        f"memory: model {loaded / 2**20:,.0f} MiB, one slot with a full window "
        f"{plan.per_slot / 2**20:,.0f} MiB"
    )
    if {"parts", "bandwidth"} & set(options.measure):
        copy = copy_bandwidth(device)
        report["copy_gb_s"] = round(copy / 1e9, 2)
        say(f"copy: {copy / 1e9:,.1f} GB/s read and written")
        if "parts" in options.measure:
            report["parts"] = measure_parts(served, options, fill, copy, device, say)
        if "bandwidth" in options.measure:
            report["bandwidth"] = measure_bandwidth(served, options, copy, device, say)
    if options.peer:
        report["peer"] = measure_peer(served, options, fill, device, say)
    return result


def _plan(options: BenchOptions, target: Target, config: ModelConfig) -> MemoryPlan:
    """For the largest batch; a prompt or two are within the workspace."""
    most = replace(options.engine, max_sessions=max(options.sessions), prefix_cache_bytes=0)
    return plan_engine(config, most, target)


def _compare_batches(report: dict[str, Any], say: Callable[[str], None]) -> None:
    rows = report["sessions"]
    if "1" in rows and "8" in rows:
        ratio = rows["8"]["p50_ms"] / rows["1"]["p50_ms"]
        report["batch_8_to_1"] = round(ratio, 2)
        say(f"a step for 8 takes {ratio:.2f}x the time of a step for 1")
