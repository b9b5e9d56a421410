"""The metrics of a server and of its engine, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pipecat_personaplex.interface import STEP_BOUNDS_MS, EngineStats
from pipecat_personaplex.server.admission import AdmissionController, Refusal
from pipecat_personaplex.server.connection_limits import ConnectionLimits

CACHE_SECONDS = 0.5
"""Time for which ``render`` returns the same text: a flood of requests must not cost much."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """A server's metrics.

    The endpoints increment the counters below. All other values are read from the engine and the
    admission controller when Prometheus requests them.

    Args:
        stats: Returns the engine's counters; None while the engine is loading.
        admission: The server's admission controller.

    Attributes:
        sessions_opened: Label ``endpoint``: ``sessions_opened.labels("/v1/session").inc()``.
        resumes: Sessions that continued on another connection.
        messages_refused: Invalid messages from clients.
        prompt_updates: Label ``result``: ``done``, or ``refused`` if the old prompt stays.
        connection_limits: Those of the server's port; None where another program accepts.

    Example::

        metrics = Metrics(engine.stats, admission)
        metrics.resumes.inc()
        text = metrics.render()
    """

    def __init__(self, stats: Callable[[], EngineStats | None], admission: AdmissionController):
        self._registry = CollectorRegistry()
        self.sessions_opened = Counter(
            "personaplex_sessions_opened",
            "Sessions opened",
            ["endpoint"],
            registry=self._registry,
        )
        self.resumes = Counter(
            "personaplex_resumes", "Sessions resumed after a cut", registry=self._registry
        )
        self.messages_refused = Counter(
            "personaplex_messages_refused", "Messages that were refused", registry=self._registry
        )
        self.prompt_updates = Counter(
            "personaplex_prompt_updates",
            "Requests to replace the prompt of a running session",
            ["result"],
            registry=self._registry,
        )
        for result in ("done", "refused"):
            self.prompt_updates.labels(result)  # 0 until the first, instead of no value
        self.connection_limits: ConnectionLimits | None = None
        self._registry.register(_CurrentState(stats, admission, lambda: self.connection_limits))
        self._rendered = b""
        self._rendered_at = -CACHE_SECONDS

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format, at most ``CACHE_SECONDS`` old."""
        now = time.monotonic()
        if now - self._rendered_at >= CACHE_SECONDS:
            self._rendered, self._rendered_at = generate_latest(self._registry), now
        return self._rendered


class _CurrentState(Collector):
    """Reads the state of engine and admission controller at each request."""

    def __init__(
        self,
        stats: Callable[[], EngineStats | None],
        admission: AdmissionController,
        limits: Callable[[], ConnectionLimits | None],
    ):
        self._stats = stats
        self._admission = admission
        self._limits = limits

    def describe(self) -> Iterable[Metric]:
        # Without this method the registry calls collect() to learn the names, too early for stats.
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield _gauge("connections", "WebSockets open", self._admission.connections)
        yield _gauge("draining", "Whether the server is stopping", self._admission.draining)
        yield _refusals(self._admission, stats, self._limits())
        yield _gauge("healthy", "Whether the engine serves", stats is not None and stats.healthy)
        if stats is not None:
            yield from _engine_metrics(stats)


def _engine_metrics(stats: EngineStats) -> Iterable[Metric]:
    yield _gauge("sessions", "Sessions open", stats.sessions)
    yield _gauge("max_sessions", "Slots for sessions", stats.max_sessions)
    yield _gauge("queued_frames", "Input frames in the queues", stats.queued_frames)
    yield _counter("frames", "Frames of 80 ms computed", stats.frames)
    yield _counter("late_frames", "Frames that took more than 80 ms", stats.late_frames)
    yield _counter("slow_callbacks", "Callbacks that took more than 80 ms", stats.slow_callbacks)
    yield _counter("stuck_callbacks", "Callbacks that did not return", stats.stuck_callbacks)
    yield _counter("prefix_hits", "Prompts found in the prefix cache", stats.prefix_hits)
    yield _counter("prefix_misses", "Prompts computed", stats.prefix_misses)
    yield _gauge("prefix_bytes", "Bytes of the prompts in the prefix cache", stats.prefix_bytes)
    yield HistogramMetricFamily(
        "personaplex_step_seconds",
        "Time of a step, which computes one frame of every session",
        buckets=_buckets(stats.step_histogram),
        sum_value=stats.step_seconds_total,
    )


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Convert counts of each bucket to Prometheus' cumulative buckets; the last is +Inf."""
    bounds = [str(bound / 1e3) for bound in STEP_BOUNDS_MS] + ["+Inf"]
    return list(zip(bounds, accumulate(counts), strict=True))


def _refusals(
    admission: AdmissionController, stats: EngineStats | None, limits: ConnectionLimits | None
) -> Metric:
    refusals = CounterMetricFamily(
        "personaplex_refusals", "Refused connections and sessions", labels=["reason"]
    )
    engine_full = 0 if stats is None else stats.refused
    # From 0 on: an alert on the increase does not see the first value of a series.
    counts: dict[str, int] = {reason: admission.refusals[reason] for reason in get_args(Refusal)}
    counts["engine_full"] = engine_full
    if limits is not None:
        counts |= {"address_rate": limits.refused, "connection_evicted": limits.evicted}
    for reason, count in counts.items():
        refusals.add_metric([reason], count)
    return refusals


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"personaplex_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"personaplex_{name}", text, value=value)
