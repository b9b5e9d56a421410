"""Step times: one step after another without a pause, and in real time for minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from pipecat_personaplex.bench.measurements import BenchOptions, Echo, Fill
from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.bench.timing import (
    free_memory,
    percentiles_ms,
    real_time_factor,
    synchronize,
    time_calls,
)
from pipecat_personaplex.bench.workload import (
    new_runner,
    noise_prefix,
    start_sessions,
    step_call,
)
from pipecat_personaplex.constants import FRAME_SECONDS


def measure_steps(
    model: LoadedModel, options: BenchOptions, fill: Fill, echo: Echo
) -> tuple[dict[str, Any], dict[int, list[float]]]:
    """Time the steps of each batch size, with sampling.

    Returns:
        The rows of the report, and the seconds of every timed step by batch size.
    """
    device = model.device
    prefix = noise_prefix(model, fill.positions)
    rows: dict[str, Any] = {}
    step_seconds = {}
    for count in options.sessions:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        runner = new_runner(model, count)
        start_sessions(runner, count, prefix, fill)
        step = step_call(runner, count)
        seconds = time_calls(step, options.frames, device)
        row: dict[str, Any] = {
            **percentiles_ms(seconds),
            "real_time_factor": real_time_factor(seconds),
        }
        echo(
            f"{count:4d} sessions   p50 {row['p50_ms']:8.2f} ms   p99 {row['p99_ms']:8.2f} ms   "
            f"p99.9 {row['p999_ms']:8.2f} ms   max {row['max_ms']:8.2f} ms   real-time factor "
            f"{row['real_time_factor']:.3f}"
        )
        if options.minutes:
            row["soak"], paced = soak(step, options.minutes, device)
            seconds = seconds + paced
            echo(_soak_line(row["soak"]))
        if device.type == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            row["captured"] = runner.captured
            row["graph_bytes"] = runner.graph_bytes
        rows[str(count)] = row
        step_seconds[count] = seconds
        del step, runner  # step refers to runner: both must go before the next runner is built.
        free_memory(device)
    return rows, step_seconds


def soak(
    step: Callable[[], object], minutes: float, device: torch.device
) -> tuple[dict[str, Any], list[float]]:
    """Step in real time: every 80 ms the frames of all sessions arrive together.

    A frame is late if its step finishes more than 80 ms after its arrival. A step that overruns
    delays the next ones, as it would in a call.

    Args:
        step: Runs one step.
        minutes: How long; at least one step runs.
        device: The device that the step runs on.

    Returns:
        Percentiles of the latency from a frame's arrival to the end of its step, and the seconds
        of every step.
    """
    latencies, seconds = [], []
    begin = time.perf_counter()
    for index in range(max(1, round(minutes * 60 / FRAME_SECONDS))):
        arrival = begin + index * FRAME_SECONDS
        early = arrival - time.perf_counter()
        if early > 0:
            time.sleep(early)
        started = time.perf_counter()
        step()
        synchronize(device)
        done = time.perf_counter()
        latencies.append(done - arrival)
        seconds.append(done - started)
    late = sum(latency > FRAME_SECONDS for latency in latencies)
    report = {
        "minutes": minutes,
        "steps": len(latencies),
        "late": late,
        **percentiles_ms(latencies),
    }
    return report, seconds


def _soak_line(report: dict[str, Any]) -> str:
    return (
        f"     in real time, {report['steps']} steps: {report['late']} late; frame in to frame "
        f"out p50 {report['p50_ms']:.2f}, p95 {report['p95_ms']:.2f}, p99 {report['p99_ms']:.2f}, "
        f"p99.9 {report['p999_ms']:.2f}, max {report['max_ms']:.2f} ms"
    )
