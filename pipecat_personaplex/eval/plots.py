"""PNG pictures of a run: shares with their intervals, and distributions of times."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipecat_personaplex.eval.page import SECONDS, distributions
from pipecat_personaplex.eval.plugins import require_package
from pipecat_personaplex.eval.run_folder import RunFolder
from pipecat_personaplex.eval.score_table import label

_BINS = 30


def require_plots() -> None:
    """Check that matplotlib is installed.

    Raises:
        ConfigError: It is not.
    """
    require_package("--plots", "matplotlib", "pip install 'pipecat-personaplex[eval]'")


def write_plots(run: RunFolder, folder: Path) -> list[Path]:
    """Write ``scores.png`` and, if there are times, ``times.png``.

    Raises:
        ConfigError: matplotlib is not installed.
        UserError: The run has no scores.
    """
    require_plots()
    content = run.newest_scores()
    title = f"{run.settings['title']}, {run.settings['model']}, voice {run.settings['voice']}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "scores.png"]
    _plot_scores(content, title, files[0])
    times = distributions(content)
    if times:
        files.append(folder / "times.png")
        _plot_times(times, title, files[1])
    return files


def _plot_scores(content: Mapping[str, Any], title: str, path: Path) -> None:
    """A bar with its interval for every score that is no time, one colour for each rule set."""
    from matplotlib.figure import Figure

    summaries = {
        rules: {
            key: score
            for key, score in summary.items()
            if key.rpartition(".")[2] not in (*SECONDS, "judge", "onsets")
        }
        for rules, summary in content["summary"].items()
    }
    keys = list(dict.fromkeys(key for summary in summaries.values() for key in summary))
    figure = Figure(figsize=(10, 1.5 + 0.35 * len(keys)), dpi=110, layout="constrained")
    axis = figure.subplots()
    height = 0.8 / len(summaries)
    for number, (rules, summary) in enumerate(summaries.items()):
        shown = [key for key in keys if key in summary]
        axis.barh(
            [keys.index(key) + number * height for key in shown],
            [summary[key]["mean"] for key in shown],
            height,
            xerr=[
                [max(0.0, summary[key]["mean"] - summary[key]["low"]) for key in shown],
                [max(0.0, summary[key]["high"] - summary[key]["mean"]) for key in shown],
            ],
            label=rules,
            capsize=2,
        )
    axis.set_yticks(range(len(keys)), [label(key) for key in keys], fontsize="small")
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.legend()
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, format="png")


def _plot_times(times: Mapping[str, list[float]], title: str, path: Path) -> None:
    """A histogram of each time in seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 1.6 * len(times)), dpi=110, layout="constrained")
    axes = figure.subplots(len(times), 1, squeeze=False)[:, 0]
    for axis, (name, values) in zip(axes, times.items(), strict=True):
        axis.hist(values, bins=_BINS, color="tab:blue")
        median = sorted(values)[len(values) // 2]
        axis.axvline(median, color="tab:orange", label=f"median {median:.2f} s")
        axis.set_title(f"{label(name)} ({len(values)})", fontsize="small", loc="left")
        axis.legend(fontsize="small")
    axes[-1].set_xlabel("seconds")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, format="png")
