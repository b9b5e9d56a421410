"""Clocks: what a caller waits for, and what the device alone takes."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import numpy as np
import torch
from loguru import logger

from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.engine.cuda_graphs import preserve_stream

_WARM_UP = 5


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what is no longer used: the next measurement may need all the device has."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def timed(call: Callable[[], object], times: int, device: torch.device) -> list[float]:
    """Seconds of each call, all its work on the device included, after a few that do not count."""
    for _ in range(_WARM_UP):
        call()
    seconds = []
    for _ in range(times):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return seconds


def median_ms(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Median of ``timed``, in milliseconds."""
    return float(np.median(timed(call, times, device))) * 1e3


def device_seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Median seconds that a call keeps the device busy.

    On CUDA the call is captured in a graph if it can be, so that what it takes to launch its
    kernels one by one does not count.
    """
    if device.type != "cuda":
        return float(np.median(timed(call, times, device)))
    with torch.cuda.device(device):
        for _ in range(_WARM_UP):
            call()
        torch.cuda.synchronize()
        replay = _captured(call) or call
        replay()
        seconds = []
        for _ in range(times):
            begin, end = _event(), _event()
            begin.record()
            replay()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
    return float(np.median(seconds))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(call: Callable[[], object]) -> Callable[[], None] | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with preserve_stream(), torch.cuda.graph(graph):
            call()
    except Exception as error:
        torch.cuda.synchronize()
        logger.warning("a part cannot be captured and is timed with its launches: {}", error)
        return None
    return graph.replay


def figures(seconds: list[float]) -> dict[str, float]:
    """Percentiles in milliseconds."""
    milliseconds = np.array(seconds) * 1e3
    names = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    values = np.percentile(milliseconds, (50, 95, 99, 99.9, 100))
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True)}


def real_time_factor(seconds: list[float]) -> float:
    """Of the time a frame lasts, the part that a step takes on average."""
    return round(float(np.mean(seconds)) / FRAME_SECONDS, 4)
