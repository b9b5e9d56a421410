"""``personaplex eval score`` and ``table``, and the output that ``personaplex eval run`` shares."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipecat_personaplex.errors import ConfigError, UserError

if TYPE_CHECKING:
    from pipecat_personaplex.eval.run_folder import RunFolder
    from pipecat_personaplex.eval.score_run import Scorer

SCORE_EXAMPLES = """[bold]Examples[/bold]

personaplex eval score runs/fdb --asr onnx:parakeet-tdt-0.6b-v2 --vad silero --judge openai:gpt-4o

personaplex eval score runs/nano --asr whisper:tiny.en --judge rules"""

TABLE_EXAMPLES = """[bold]Examples[/bold]

personaplex eval table runs/fdb --markdown --plots plots"""

Asr = Annotated[
    str,
    typer.Option(
        metavar="NAME[:MODEL]",
        help="The transcriber: [bold]monologue[/bold], the words of the model's own text stream; "
        "[bold]whisper:MODEL|FOLDER[/bold]; [bold]pocketsphinx[/bold]; [bold]onnx:MODEL[/bold] "
        "(onnx-asr, by default parakeet-tdt-0.6b-v2); [bold]files:FOLDER[/bold] with "
        "SEED/ID.json as the published scripts write them; or an installed plugin.",
    ),
]
Vad = Annotated[
    Literal["energy", "silero"],
    typer.Option(
        help="The detector of the agent's speech: its level, or Silero (needs onnxruntime)."
    ),
]
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="NAME",
        help="The judge, which rates answers from 0 to 5: [bold]none[/bold]; [bold]rules[/bold], "
        "which knows the right answers of some suites; [bold]openai:MODEL[/bold] "
        "(OPENAI_API_KEY); or the address of an OpenAI-compatible server with the model after #, "
        "such as http://localhost:8000/v1#qwen (PERSONAPLEX_JUDGE_KEY).",
    ),
]
RuleSet = Annotated[
    Literal["both", "compat", "fixed"],
    typer.Option(
        help="The rule set: compat gives what the published scripts give, with their quirks; "
        "fixed corrects them."
    ),
]


def score(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    asr: Asr = "monologue",
    vad: Vad = "energy",
    judge: JudgeName = "none",
    rules: RuleSet = "both",
) -> None:
    """Score a run, print its table and write its page.

    Transcripts and judgements are stored in the run. Scores with other options are added to it,
    and the table has a column for each.
    """
    from pipecat_personaplex.eval.run_folder import RunFolder

    folder = RunFolder.open(run)
    scorer = make_scorer(asr, vad, judge, rules)
    score_and_show(folder, scorer)
    write_layout_of(folder, scorer)


def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of one suite.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Published results in further columns: [bold]card[/bold], NVIDIA's model card; "
            "[bold]paper[/bold], the paper of PersonaPlex; [bold]kyutai[/bold], Kyutai's "
            "reproduction; or none.",
        ),
    ] = "card,paper,kyutai",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Also write the page of the first run."),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write PNG pictures of the first run."),
    ] = None,
) -> None:
    """Print the scores of one or more runs, with published results in further columns."""
    from pipecat_personaplex.eval.plots import require_plots, write_plots
    from pipecat_personaplex.eval.run_folder import RunFolder

    if plots is not None:
        require_plots()
    folders = [RunFolder.open(path) for path in runs]
    _show(folders, markdown, against)
    if html is not None:
        _write_page(folders[0], html)
    if plots is not None:
        for file in write_plots(folders[0], plots):
            typer.echo(str(file))


def make_scorer(
    asr: str = "monologue",
    vad: Literal["energy", "silero"] = "energy",
    judge: str = "none",
    rules: str = "both",
) -> Scorer:
    """The scorer that these options name.

    Raises:
        ConfigError: An option is not valid, or a package that it needs is not installed.
    """
    from pipecat_personaplex.eval.judges import find_judge
    from pipecat_personaplex.eval.score_run import FILES, Scorer
    from pipecat_personaplex.eval.scoring.item_score import RULES
    from pipecat_personaplex.eval.transcribers import MONOLOGUE, find_transcriber
    from pipecat_personaplex.eval.voice_activity import detector

    keys = {"openai": "OPENAI_API_KEY", "server": "PERSONAPLEX_JUDGE_KEY"}
    found = find_judge(judge, {name: os.environ.get(key, "") for name, key in keys.items()})
    given = asr == MONOLOGUE or asr.startswith(FILES)
    return Scorer(
        asr,
        None if given else find_transcriber(asr),
        vad,
        detector(vad),
        found,
        tuple(each for each in RULES if rules in ("both", each)),
    )


def score_and_show(run: RunFolder, scorer: Scorer) -> None:
    """Score a run, print its table and write its page."""
    from pipecat_personaplex.cli.progress import progress_bar
    from pipecat_personaplex.eval.score_run import score_run

    with progress_bar(f"scoring with {scorer.asr}") as bar:
        score_run(run, scorer, bar)
    _show([run], markdown=False)
    _write_page(run)


def write_layout_of(run: RunFolder, scorer: Scorer) -> None:
    """Write a run of Full-Duplex-Bench for the benchmark's own scripts; no effect on others."""
    from pipecat_personaplex.eval.fdb_layout import SUITES, write_layout
    from pipecat_personaplex.eval.score_run import safe_name, transcribe

    if run.settings["suite"] not in SUITES:
        return
    calls = [call for call in run.calls() if not call.error]
    if not calls:
        raise UserError(f"{run.path} has no finished calls")
    transcripts = [(call, transcribe(run, call, scorer)) for call in calls]
    folder = write_layout(run, safe_name(scorer.asr), transcripts)
    typer.echo(f"for Full-Duplex-Bench's own scripts: {folder}")


def _show(runs: list[RunFolder], markdown: bool, against: str = "card,paper,kyutai") -> None:
    from pipecat_personaplex.eval.published import SOURCES
    from pipecat_personaplex.eval.score_table import make_table

    names = [] if against == "none" else against.split(",")
    unknown = [name for name in names if name not in SOURCES]
    if unknown:
        raise ConfigError(
            f"--against must be of {', '.join(SOURCES)}, or none; not {', '.join(unknown)}"
        )
    table = make_table(runs, [source for source in SOURCES if source in names])
    if markdown:
        typer.echo(table.markdown())
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(show_lines=False)
    for number, title in enumerate(table.header):
        shown.add_column(title, overflow="fold", no_wrap=False, ratio=2 if number == 0 else 1)
    for row in table.rows:
        shown.add_row(*row)
    for line in table.title:
        typer.echo(line)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(shown, markup=False)
    for line in table.notes:
        typer.echo(line)


def _write_page(run: RunFolder, path: Path | None = None) -> None:
    from pipecat_personaplex.eval.page import write_page

    typer.echo(f"page: {write_page(run, path)}")
