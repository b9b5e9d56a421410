"""Run all requested measurements of one model and collect the report.

Speed does not depend on the values of the weights: ``random-1b`` and ``random-7b`` measure an
architecture without a checkpoint, and the output says that the weights are random.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from pipecat_personaplex.bench.bandwidth import measure_bandwidth, read_bandwidth
from pipecat_personaplex.bench.machine import describe_machine, used_bytes
from pipecat_personaplex.bench.measurements import BenchOptions, Echo, Fill
from pipecat_personaplex.bench.models import RANDOM_MODELS, load_model, read_architecture
from pipecat_personaplex.bench.parts import measure_parts
from pipecat_personaplex.bench.peer import measure_peer
from pipecat_personaplex.bench.prompts import measure_prompts
from pipecat_personaplex.bench.replays import measure_replays
from pipecat_personaplex.bench.steps import measure_steps
from pipecat_personaplex.bench.timing import free_memory
from pipecat_personaplex.bench.verdict import judge
from pipecat_personaplex.engine.free_memory import available_bytes
from pipecat_personaplex.engine.memory_plan import MemoryPlan, plan_engine, require_memory
from pipecat_personaplex.engine.weight_format import resolve_quantization
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.device import Target, resolve_target


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        report: What the command prints as its last line, as JSON.
        step_seconds: Seconds of every timed step, by batch size.
    """

    report: dict[str, Any]
    step_seconds: dict[int, list[float]] = field(default_factory=dict)


def run(options: BenchOptions, echo: Echo) -> Result:
    """Run the requested measurements.

    Args:
        options: What to measure.
        echo: Prints one line of results.

    Raises:
        ConfigError: The device cannot be used, or has too little memory.
        CheckpointError: The model cannot be loaded.
    """
    engine = options.engine
    target = resolve_target(engine.device, engine.dtype, engine.quantization)
    device = target.device
    config = read_architecture(options.model).with_options(engine)
    fill = Fill.of(options, config.lm.window, config.mimi.window)
    target = resolve_quantization(config, engine, target)
    # Every model of this run has the format that fits now.
    engine = replace(engine, quantization=target.quantization)
    options = replace(options, engine=engine)
    plan = _plan(options, target, config)
    echo(f"memory in GiB: {plan.describe(available_bytes(device))}")
    require_memory(plan, device, max(options.sessions) if options.fill == "full" else 1)

    before, begin = used_bytes(device), time.perf_counter()
    model = load_model(options.model, engine)
    load_seconds, loaded = time.perf_counter() - begin, used_bytes(device) - before
    filled = min(fill.positions, model.window)
    report: dict[str, Any] = {
        "model": options.model,
        **describe_machine(device),
        "dtype": str(model.lm.dtype).removeprefix("torch."),
        "quantization": plan.quantization,
        "kv_dtype": plan.kv_dtype,
        "window": model.window,
        "filled": filled,
        "frames": options.frames,
        "load_seconds": round(load_seconds, 3),
    }
    echo(
        f"{options.model} on {report['device']}, {report['threads']} threads, torch "
        f"{report['torch']}, {report['dtype']}, quantization {report['quantization'] or 'none'}, "
        f"keys and values in {report['kv_dtype']}"
    )
    if options.model in RANDOM_MODELS:
        echo("weights are random: the speed is that of the model, the sound is noise")
    if "prompts" in options.measure:
        report["prefill"] = measure_prompts(model, options, echo)
        free_memory(device)
        report["replays"] = measure_replays(model, options, fill, echo)
        free_memory(device)
    result = Result(report)
    if "steps" in options.measure:
        echo(f"steps with {filled:,} of {model.window:,} frames of each window filled")
        report["sessions"], seconds = measure_steps(model, options, fill, echo)
        result.step_seconds.update(seconds)
        _compare_batches(report, echo)
    report["memory"] = {
        "model_bytes": loaded,
        "slot_bytes": plan.per_slot,
        "plan": plan.as_dict(),
    }
    echo(
        f"memory: model {loaded / 2**20:,.0f} MiB, one slot with a full window "
        f"{plan.per_slot / 2**20:,.0f} MiB"
    )
    if {"parts", "bandwidth"} & set(options.measure):
        read = read_bandwidth(device)
        report["read_gb_s"] = round(read / 1e9, 2)
        echo(f"reading memory: {read / 1e9:,.1f} GB/s")
        if "parts" in options.measure:
            report["parts"] = measure_parts(model, options, fill, read, echo)
        if "bandwidth" in options.measure:
            report["bandwidth"] = measure_bandwidth(model, options, read, echo)
    if options.peer:
        report["peer"] = measure_peer(model, options, fill, echo)
    verdict = judge(report)
    if verdict is not None:
        report["verdict"] = verdict
        echo(f"verdict: {verdict['text']}")
    return result


def _plan(options: BenchOptions, target: Target, config: ModelConfig) -> MemoryPlan:
    """Plan the memory for the largest batch. The workspace has room for a prompt or two."""
    largest = replace(options.engine, max_sessions=max(options.sessions), prefix_cache_bytes=0)
    return plan_engine(config, largest, target)


def _compare_batches(report: dict[str, Any], echo: Echo) -> None:
    rows = report["sessions"]
    if "1" in rows and "8" in rows:
        ratio = rows["8"]["p50_ms"] / rows["1"]["p50_ms"]
        report["batch_8_to_1"] = round(ratio, 2)
        echo(f"a step for 8 takes {ratio:.2f}x the time of a step for 1")
