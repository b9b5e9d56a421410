"""A histogram of the step times, as a PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipecat_personaplex.constants import FRAME_SECONDS

_FRAME_MS = FRAME_SECONDS * 1e3
_BINS = 80
_TITLE_WIDTH = 100
_PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}


def draw_histogram(step_seconds: Mapping[int, Sequence[float]], title: str, path: Path) -> None:
    """Write a PNG with one histogram per batch size, percentiles, and a mark at 80 ms.

    Args:
        step_seconds: Seconds of the steps, by number of callers in a batch.
        title: Title of the picture.
        path: The file to write.
    """
    from matplotlib.figure import Figure  # An optional dependency: the extra "bench".

    figure = Figure(figsize=(10, 1.2 + 1.8 * len(step_seconds)), dpi=120, layout="constrained")
    axes = figure.subplots(len(step_seconds), 1, sharex=True, squeeze=False)[:, 0]
    longest = max(max(seconds) for seconds in step_seconds.values()) * 1e3
    edges = np.linspace(0, max(longest, _FRAME_MS) * 1.05, _BINS + 1)
    for axis, (callers, seconds) in zip(axes, step_seconds.items(), strict=True):
        milliseconds = np.array(seconds) * 1e3
        axis.hist(milliseconds, bins=edges, color="tab:blue")
        axis.set_yscale("log")
        axis.set_ylabel(f"steps, {callers} callers" if callers > 1 else "steps, 1 caller")
        for (name, percent), style in zip(_PERCENTILES.items(), ("-", "--", ":"), strict=True):
            value = float(np.percentile(milliseconds, percent))
            label = f"{name} {value:.1f} ms"
            axis.axvline(value, color="tab:orange", linestyle=style, label=label)
        axis.axvline(_FRAME_MS, color="tab:red", label=f"a frame, {_FRAME_MS:.0f} ms")
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    axes[-1].set_xlabel("step, ms")
    figure.suptitle(textwrap.fill(title, _TITLE_WIDTH), fontsize="medium")
    figure.savefig(path, format="png")
