"""Means over items with bootstrap confidence intervals, and the spread over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_RESAMPLES = 2_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class ItemValues:
    """The metrics of one call.

    Attributes:
        item: Id of the item.
        group: Its group.
        seed: Seed of the call.
        values: Pairs of a metric and its value; a metric may occur once for each event.
    """

    item: str
    group: str
    seed: int
    values: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Summary:
    """One metric of one group.

    Attributes:
        mean: Mean over items of each item's mean over its events and seeds; with ``compat``, the
            mean over all values, so that a repeated value counts again.
        low: Lower end of the 95 % confidence interval, from a bootstrap over items.
        high: Its upper end.
        items: Items that have the metric.
        seeds: Mean of each seed, by seed.
        spread: Standard deviation of the seeds' means; 0 with one seed.
    """

    mean: float
    low: float
    high: float
    items: int
    seeds: Mapping[int, float]
    spread: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"seeds": {str(seed): mean for seed, mean in self.seeds.items()}}


def summarize(calls: Iterable[ItemValues], compat: bool = False) -> dict[str, Summary]:
    """Summarise calls; keys are ``group/event.metric``, in order of their first appearance.

    Args:
        calls: The metrics of every call.
        compat: Whether to take the mean over all values, as the published scripts do.
    """
    values: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for call in calls:
        for metric, value in call.values:
            values[f"{call.group}/{metric}"][call.item][call.seed].append(value)
    return {key: _summary(items, compat) for key, items in values.items()}


def _summary(items: Mapping[str, Mapping[int, Sequence[float]]], compat: bool) -> Summary:
    by_seed: dict[int, list[float]] = defaultdict(list)
    means, weights = [], []
    for item in sorted(items):  # the interval must not depend on the order in which calls end
        seeds = [values for _, values in sorted(items[item].items())]
        count = sum(map(len, seeds)) if compat else 1
        means.append(
            sum(map(sum, seeds)) / count if compat else float(np.mean([*map(np.mean, seeds)]))
        )
        weights.append(count)
        for seed, values in items[item].items():
            by_seed[seed] += values if compat else [float(np.mean(values))]
    low, high = bootstrap_interval(means, weights)
    seed_means = {seed: float(np.mean(by_seed[seed])) for seed in sorted(by_seed)}
    spread = float(np.std(list(seed_means.values()), ddof=1)) if len(seed_means) > 1 else 0.0
    mean = float(np.average(means, weights=weights))
    return Summary(mean, low, high, len(means), seed_means, spread)


def bootstrap_interval(
    values: Sequence[float], weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """The 95 % percentile interval of the (weighted) mean; the same for the same values."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return float(array[0]), float(array[0])
    weight = np.ones_like(array) if weights is None else np.asarray(weights, np.float64)
    random = np.random.default_rng(0)
    samples = random.integers(len(array), size=(_RESAMPLES, len(array)))
    means = (array * weight)[samples].sum(axis=1) / weight[samples].sum(axis=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)
