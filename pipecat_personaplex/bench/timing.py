"""Clocks: how long a caller waits for a call to finish, and how long the device works on it."""

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
    """Wait until the device has finished all work given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Free unused memory: the next measurement may need all that the device has."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def time_calls(
    call: Callable[[], object], times: int, device: torch.device, warm_up: int = _WARM_UP
) -> list[float]:
    """Return the seconds of each call, including its work on the device, after a warm-up."""
    for _ in range(warm_up):
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
    """Return the median of ``time_calls`` in milliseconds."""
    return float(np.median(time_calls(call, times, device))) * 1e3


def device_seconds(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Return the median seconds for which a call keeps the device busy.

    On CUDA the call is captured as a graph, so that the time to launch its kernels one by one
    does not count. A call that cannot be captured is timed with its launches.
    """
    if device.type != "cuda":
        return float(np.median(time_calls(call, times, device)))
    with torch.cuda.device(device):
        for _ in range(_WARM_UP):
            call()
        torch.cuda.synchronize()
        replay = _capture(call) or call
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


def _capture(call: Callable[[], object]) -> Callable[[], None] | None:
    graph = torch.cuda.CUDAGraph()
    try:
        with preserve_stream(), torch.cuda.graph(graph):
            call()
    except Exception as error:
        torch.cuda.synchronize()
        logger.warning("a part cannot be captured and is timed with its launches: {}", error)
        return None
    return graph.replay


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds, by the names that a report gives them."""
    milliseconds = np.array(seconds) * 1e3
    names = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    values = np.percentile(milliseconds, (50, 95, 99, 99.9, 100))
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True)}


def real_time_factor(seconds: list[float]) -> float:
    """Return the mean step time as a fraction of the 80 ms that a frame lasts."""
    return round(float(np.mean(seconds)) / FRAME_SECONDS, 4)
