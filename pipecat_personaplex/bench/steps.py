"""Step times: as fast as it goes, and in real time for minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from pipecat_personaplex.bench.calls import Served, new_runner, noise_prefix, start, stepping
from pipecat_personaplex.bench.options import BenchOptions, Fill
from pipecat_personaplex.bench.timing import figures, real_time_factor, release, synchronize, timed
from pipecat_personaplex.constants import FRAME_SECONDS

Say = Callable[[str], None]


def measure_steps(
    served: Served, options: BenchOptions, fill: Fill, device: torch.device, say: Say
) -> tuple[dict[str, Any], dict[int, list[float]]]:
    """A row for each number of callers, sampling on.

    Returns:
        The report's rows, and the seconds of every timed step by number of callers.
    """
    prefix = noise_prefix(served, fill.positions, device)
    rows: dict[str, Any] = {}
    samples = {}
    for count in options.sessions:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        runner = new_runner(served, count, device)
        start(runner, count, prefix, fill)
        step = stepping(runner, count)
        seconds = timed(step, options.frames, device)
        row: dict[str, Any] = {
            **figures(seconds),
            "real_time_factor": real_time_factor(seconds),
        }
        say(
            f"{count:4d} sessions   p50 {row['p50_ms']:8.2f} ms   p99 {row['p99_ms']:8.2f} ms   "
            f"p99.9 {row['p999_ms']:8.2f} ms   max {row['max_ms']:8.2f} ms   real-time factor "
            f"{row['real_time_factor']:.3f}"
        )
        if options.minutes:
            row["soak"], paced = soak(step, options.minutes, device)
            seconds = seconds + paced
            say(_soak_line(row["soak"]))
        if device.type == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            row["captured"] = runner.captured
            row["graph_bytes"] = runner.graph_bytes
        rows[str(count)] = row
        samples[count] = seconds
        del step, runner  # the one holds the other
        release(device)
    return rows, samples


def soak(
    step: Callable[[], object], minutes: float, device: torch.device
) -> tuple[dict[str, Any], list[float]]:
    """Step in real time: every 80 ms each caller's frame arrives, all at once.

    A frame is late when its answer takes longer than a frame; a step that overruns delays the
    next, as it would delay the callers.

    Returns:
        Latencies from a frame's arrival to its answer, and the seconds of every step.
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
    report = {"minutes": minutes, "steps": len(latencies), "late": late, **figures(latencies)}
    return report, seconds


def _soak_line(report: dict[str, Any]) -> str:
    return (
        f"     in real time, {report['steps']} steps: {report['late']} late; frame in to frame "
        f"out p50 {report['p50_ms']:.2f}, p95 {report['p95_ms']:.2f}, p99 {report['p99_ms']:.2f}, "
        f"p99.9 {report['p999_ms']:.2f}, max {report['max_ms']:.2f} ms"
    )
