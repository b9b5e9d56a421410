"""Tables of scores: runs beside each other and beside published results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.published import NOTES, SOURCES, Source, published
from pipecat_personaplex.eval.run_folder import RunFolder
from pipecat_personaplex.eval.run_suite import read_speed
from pipecat_personaplex.eval.scoring.item_score import RULES

METRICS = {
    "tor": ("takes the turn (TOR)", ""),
    "latency": ("latency, s", "↓"),
    "offset": ("signed offset, s", ""),
    "early": ("starts early, share", "↓"),
    "frequency": ("backchannels a second", "↑"),
    "jsd": ("distance from people's (JSD)", "↓"),
    "judge": ("judge, 0 to 5", "↑"),
    "stop": ("speaks on into it, s", "↓"),
    "stopped": ("stops before its end, share", "↑"),
    "response": ("next start after it, s", "↓"),
    "ignored": ("goes on as before, share", "↑"),
    "spoke": ("speaks, share", "↓"),
    "onsets": ("starts to speak, times", "↓"),
}
"""Label and better direction of each metric."""
_TOR_DIRECTIONS = {"pause": "↓", "narration": "↓", "turn_end": "↑", "interruption": "↑"}
_LATENCIES = ("latency",)


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        title: Lines above it: what was run and how it was scored.
        header: Column titles.
        rows: Cells.
        notes: Lines below it.
    """

    title: Sequence[str]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [f"- {line}" for line in self.title]
        lines += ["", _row(self.header), _row(["---"] * len(self.header))]
        lines += [_row(row) for row in self.rows]
        lines += ["", *(f"- {line}" for line in self.notes)]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Column:
    title: str
    cells: dict[str, str]


def make_table(runs: Sequence[RunFolder], against: Sequence[Source] = tuple(SOURCES)) -> Table:
    """Make one table of all scores of these runs.

    Args:
        runs: Runs of one suite.
        against: Whose published results to show, if there are any for the suite.

    Raises:
        UserError: The runs are of several suites, or one has no scores.
    """
    suites = {run.settings["suite"] for run in runs}
    if len(suites) != 1:
        raise UserError(f"the runs are of several suites: {', '.join(sorted(suites))}")
    suite = suites.pop()
    title, notes, columns = [], [], []
    keys: dict[str, None] = {}
    for number, run in enumerate(runs, 1):
        prefix = f"run {number}, " if len(runs) > 1 else ""
        title += [prefix + line for line in describe(run)]
        scores = list(run.scores())
        if not scores:
            raise UserError(f"{run.path} has no scores; `personaplex eval score` makes them")
        step = served_seconds(run)
        for _, content in scores:
            for rules in (rules for rules in RULES if rules in content["summary"]):
                summary = content["summary"][rules]
                judge = f", judge {content['judge']}" if content["judge"] != "none" else ""
                names = f"{prefix}{content['asr']}, {content['vad']}, {rules}{judge}"
                columns.append(_Column(names, dict(_cells(summary, step))))
                keys |= dict.fromkeys(columns[-1].cells)
    for source in against:
        values = {rules: published(suite, source, rules) for rules in RULES}
        if any(values.values()):
            merged = {
                key: f"{value:.3f}" + (" (fixed)" if rules == "fixed" else "")
                for rules in RULES
                for key, value in values[rules].items()
            }
            columns.append(_Column(source, merged))
            notes.append(f"{source}: {SOURCES[source]}. {NOTES[source]}")
            keys |= dict.fromkeys(merged)
    notes += _NOTES
    rows = [
        [label(key), *(column.cells.get(key, "-") for column in columns)] for key in _sorted(keys)
    ]
    return Table(title, ["", *(column.title for column in columns)], rows, notes)


_NOTES = (
    "[low, high] is the 95 % bootstrap interval over items, ± the standard deviation over seeds.",
    "latency is on the audio axis: the output is aligned with the input, as in the files that "
    "Full-Duplex-Bench scores. latency, served adds one frame (80 ms), which a caller must have "
    "spoken before its answer can be computed, and the median step of the run's batch.",
)


def describe(run: RunFolder) -> Iterator[str]:
    """What was run: one line each for the model, for the calls, and for their speed."""
    settings = run.settings
    quantization = settings["quantization"] or settings["dtype"]
    commit = settings["commit"] or f"version {settings['version']}"
    yield (
        f"{settings['model']} ({settings['checkpoint_sha256']}, {quantization}) on "
        f"{settings['machine']['device']}, {commit}"
    )
    sampling = ", ".join(f"{name} {value}" for name, value in settings["sampling"].items())
    seeds = ", ".join(map(str, settings["seeds"]))
    yield (
        f"{settings['title']}: {settings['items']} items ({settings['data_sha256']}), voice "
        f"{settings['voice']}, seeds {seeds}, {sampling}"
    )
    failed = sum(bool(call.error) for call in run.calls())
    if failed:
        yield f"{failed} calls failed; items.jsonl has the reasons"
    for record in read_speed(run):
        rate = record["calls"] / record["seconds"] if record["seconds"] else 0.0
        ratio = record["audio_seconds"] / record["seconds"] if record["seconds"] else 0.0
        yield (
            f"wall clock: {record['calls']} calls in {record['seconds']:.1f} s, {rate:.2f} calls a "
            f"second, {ratio:.1f} s of call a second with {record['sessions']} sessions, median "
            f"step {record['step_p50_ms']:.1f} ms"
        )


def served_seconds(run: RunFolder) -> float | None:
    """From the audio axis to the caller's ear: a frame and the median step; None if unknown.

    Of a run in several parts, the step of the part with the most calls.
    """
    most = max(read_speed(run), key=lambda record: record["calls"], default=None)
    return None if most is None else FRAME_SECONDS + most["step_p50_ms"] / 1e3


def label(key: str) -> str:
    """A readable name of a score such as ``turn/turn_end.latency``."""
    group, event, name = _parts(key)
    base, _, variant = name.partition(", ")
    text, direction = METRICS[base]
    if base == "tor":
        direction = _TOR_DIRECTIONS.get(event, "")
    parts = [group.replace("_", " ")]
    if event.replace("_", " ") not in parts[0]:
        parts.append(event.replace("_", " "))
    return f"{': '.join(parts)}: {text}{', ' + variant if variant else ''} {direction}".strip()


def _parts(key: str) -> tuple[str, str, str]:
    """Group, event and metric of a score such as ``turn/turn_end.latency``."""
    group, _, metric = key.rpartition("/")
    event, _, name = metric.partition(".")
    return group, event, name


def _sorted(keys: dict[str, None]) -> list[str]:
    """By group, in order of their first appearance, with a group's metrics in a fixed order."""
    groups = list(dict.fromkeys(_parts(key)[0] for key in keys))
    order = list(METRICS)

    def place(key: str) -> tuple[int, str, int, str]:
        group, event, name = _parts(key)
        return groups.index(group), event, order.index(name.partition(", ")[0]), name

    return sorted(keys, key=place)


def _cells(summary: dict[str, Any], step: float | None) -> Iterator[tuple[str, str]]:
    for key, score in summary.items():
        yield key, _cell(score, 0.0)
        if step is not None and key.rpartition(".")[2] in _LATENCIES:
            yield f"{key}, served", _cell(score, step)


def _cell(score: dict[str, Any], shift: float) -> str:
    text = f"{score['mean'] + shift:.3f} [{score['low'] + shift:.3f}, {score['high'] + shift:.3f}]"
    if len(score["seeds"]) > 1:
        text += f" ±{score['spread']:.3f}"
    return f"{text} n={score['items']}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
