"""What Prometheus is told of a server and of its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pipecat_personaplex.interface import STEP_BOUNDS_MS, EngineStats
from pipecat_personaplex.server.admission import AdmissionController

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """A server's figures. Engine and door are asked when they are wanted, the rest is counted.

    Args:
        stats: The engine's figures; None while there is no engine.
        door: The server's door.

    Attributes:
        sessions_opened: Label ``endpoint``: ``sessions_opened.labels("/v1/session").inc()``.
        resumes: Sessions that went on on another connection.
        messages_refused: Messages from clients that could not be used.
    """

    def __init__(self, stats: Callable[[], EngineStats | None], door: AdmissionController):
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
        self._registry.register(_Asked(stats, door))

    def render(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Asked(Collector):
    def __init__(self, stats: Callable[[], EngineStats | None], door: AdmissionController):
        self._stats = stats
        self._door = door

    def describe(self) -> Iterable[Metric]:
        # Else the registry would collect, to learn the names, before there is an engine.
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield _gauge("connections", "WebSockets open", self._door.connections)
        yield _gauge("draining", "Whether the server is stopping", self._door.draining)
        yield _refusals(self._door, stats)
        yield _gauge("healthy", "Whether the engine serves", stats is not None and stats.healthy)
        if stats is not None:
            yield from _engine(stats)


def _engine(stats: EngineStats) -> Iterable[Metric]:
    yield _gauge("sessions", "Sessions open", stats.sessions)
    yield _gauge("max_sessions", "Sessions there is room for", stats.max_sessions)
    yield _gauge("queued_frames", "Input frames that wait", stats.queued_frames)
    yield _counter("frames", "Frames of 80 ms answered", stats.frames)
    yield _counter("late_frames", "Frames answered after more than 80 ms", stats.late_frames)
    yield _counter("prefix_hits", "Prompts found in the cache", stats.prefix_hits)
    yield _counter("prefix_misses", "Prompts computed", stats.prefix_misses)
    yield _gauge("prefix_bytes", "Memory of the prompts kept", stats.prefix_bytes)
    yield HistogramMetricFamily(
        "personaplex_step_seconds",
        "Time of a step, in which every session's frame is answered",
        buckets=_buckets(stats.step_histogram),
        sum_value=stats.step_seconds_total,
    )


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Prometheus counts everything up to a bound, and the last bound is infinity."""
    bounds = [str(bound / 1e3) for bound in STEP_BOUNDS_MS] + ["+Inf"]
    return list(zip(bounds, accumulate(counts), strict=True))


def _refusals(door: AdmissionController, stats: EngineStats | None) -> Metric:
    refusals = CounterMetricFamily(
        "personaplex_refusals", "Clients and sessions not let in", labels=["reason"]
    )
    engine_full = 0 if stats is None else stats.refused
    for reason, count in {**door.refusals, "engine_full": engine_full}.items():
        refusals.add_metric([reason], count)
    return refusals


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"personaplex_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"personaplex_{name}", text, value=value)
