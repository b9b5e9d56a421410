"""``personaplex eval``: run, score and compare full-duplex benchmarks."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipecat_personaplex.cli.eval_latency import EXAMPLES as LATENCY_EXAMPLES
from pipecat_personaplex.cli.eval_latency import latency
from pipecat_personaplex.cli.options import EngineOptions, engine_options
from pipecat_personaplex.config import EngineConfig, SamplingParams
from pipecat_personaplex.errors import ConfigError, EngineError, UserError, VoiceNotFound

if TYPE_CHECKING:
    from pipecat_personaplex.engine.engine import Engine
    from pipecat_personaplex.eval.run_folder import RunFolder
    from pipecat_personaplex.eval.score_run import Scorer

evaluation = typer.Typer(
    no_args_is_help=True, help="Run, score and compare benchmarks of full-duplex behaviour."
)
evaluation.command("latency", epilog=LATENCY_EXAMPLES)(latency)

_SUITES = "fdb-v1, fdb-v1.5, humdial, service, folder or nano"
_DEFAULT_SESSIONS = 16
_DEFAULT_SEEDS = 3
Asr = Annotated[
    str,
    typer.Option(
        metavar="NAME[:MODEL]",
        help="Who writes the agent's words: [bold]monologue[/bold], the model's own text stream; "
        "[bold]whisper:MODEL|FOLDER[/bold]; [bold]pocketsphinx[/bold]; [bold]onnx:MODEL[/bold] "
        "(onnx-asr, by default parakeet-tdt-0.6b-v2); [bold]files:FOLDER[/bold] with "
        "SEED/ID.json as the published scripts write them; or an installed plugin.",
    ),
]
Vad = Annotated[
    Literal["energy", "silero"],
    typer.Option(help="Who finds the agent's speech; silero needs onnxruntime."),
]
JudgeName = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="NAME",
        help="Who rates the answers from 0 to 5: [bold]none[/bold]; [bold]rules[/bold], which "
        "knows the right answers of some suites; [bold]openai:MODEL[/bold] (OPENAI_API_KEY); or "
        "the address of an OpenAI-compatible server with the model after #, such as "
        "http://localhost:8000/v1#qwen (PERSONAPLEX_JUDGE_KEY). Judgements are stored.",
    ),
]
RuleSet = Annotated[
    Literal["both", "compat", "fixed"],
    typer.Option(
        help="compat reproduces the published scripts with their quirks; fixed corrects them."
    ),
]


@evaluation.command(
    "run",
    epilog="""[bold]Examples[/bold]

personaplex eval run nano --model nano --out runs/nano

personaplex eval run fdb-v1 --data fdb/v1.0 --voice NATF2 --sessions 64 --out runs/fdb

personaplex eval run folder --data calls --seeds 5 --limit 10 --out runs/calls""",
)
@engine_options()
def run_(
    suite: Annotated[str, typer.Argument(help=f"The suite: {_SUITES}.")],
    options: EngineOptions,
    out: Annotated[
        Path,
        typer.Option(metavar="RUN", help="The run's folder. A run that was stopped goes on."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The suite's data, which this package does not ship."),
    ] = None,
    voice: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The agent's voice: a preset, or a recording of one speaker.",
            show_default="the first preset",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(
            metavar="N|A,B,...",
            help="How many seeds (0, 1, 2, ...), or which. Each item is run once with each.",
        ),
    ] = str(_DEFAULT_SEEDS),
    sessions: Annotated[int, typer.Option(min=1, help="Calls at once.")] = _DEFAULT_SESSIONS,
    limit: Annotated[int, typer.Option(min=0, help="Items of each group, at most; 0 for all.")] = 0,
    temperature_audio: Annotated[
        float, typer.Option(help="Sampling temperature of the audio codes.")
    ] = SamplingParams.temperature_audio,
    temperature_text: Annotated[
        float, typer.Option(help="Sampling temperature of the text tokens.")
    ] = SamplingParams.temperature_text,
    score: Annotated[
        bool,
        typer.Option(
            "--score/--no-score",
            help="Afterwards, score with the model's own words, print the table and write the "
            "page.",
        ),
    ] = True,
) -> None:
    """Run a suite: every item with every seed, many calls at once.

    Time is the callers' audio, so a busy machine changes no result. Calls are written as they end.
    """
    from pipecat_personaplex.eval.suites.registry import find_suite

    chosen = find_suite(suite)
    numbers = parse_seeds(seeds)
    sampling = SamplingParams(
        temperature_audio=temperature_audio, temperature_text=temperature_text
    )

    from pipecat_personaplex.cli.progress import rate_bar
    from pipecat_personaplex.eval.fdb_layout import SUITES as FDB_SUITES
    from pipecat_personaplex.eval.run_folder import RunFolder
    from pipecat_personaplex.eval.run_suite import (
        Plan,
        describe_run,
        run_suite,
        take_inventory,
    )

    plan = Plan(chosen, data, "", numbers, sampling, limit)
    inventory = take_inventory(plan)  # before gigabytes of weights are loaded
    model = options.resolve_model()
    engine = _load(model, replace(options.config, max_sessions=sessions))
    voice_file = Path(voice) if voice is not None and Path(voice).is_file() else None
    plan = replace(plan, voice=_add_voice(engine, voice, voice_file), voice_file=voice_file)
    run = RunFolder.create(out, describe_run(plan, inventory, engine, model))
    with engine, rate_bar(chosen.title, "calls a second") as bar:
        result = run_suite(engine, plan, run, inventory.items, bar)
    typer.echo(
        f"{out}: {result.calls} calls in {result.seconds:.1f} s, {result.calls_per_second:.2f} "
        f"calls a second, {result.audio_seconds / max(result.seconds, 1e-9):.1f} s of call a "
        f"second; {result.failed} failed"
    )
    if score:
        known = any(call.wanted for call in run.calls())
        scorer = _scorer("monologue", "energy", "rules" if known else "none", "both")
        _score(run, scorer)
        _show([run], False)
        _write_page(run, None)
    if chosen.name in FDB_SUITES:
        _write_layout(run, _scorer("monologue", "energy", "none", "both"))


@evaluation.command(
    "score",
    epilog="""[bold]Examples[/bold]

personaplex eval score runs/fdb --asr onnx:parakeet-tdt-0.6b-v2 --vad silero --judge openai:gpt-4o

personaplex eval score runs/nano --asr whisper:tiny.en --judge rules""",
)
def score_(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    asr: Asr = "monologue",
    vad: Vad = "energy",
    judge: JudgeName = "none",
    rules: RuleSet = "both",
) -> None:
    """Score a run and print its table. Transcripts and judgements are stored in the run."""
    from pipecat_personaplex.eval.fdb_layout import SUITES as FDB_SUITES
    from pipecat_personaplex.eval.run_folder import RunFolder

    folder = RunFolder.open(run)
    scorer = _scorer(asr, vad, judge, rules)
    _score(folder, scorer)
    if folder.settings["suite"] in FDB_SUITES:
        _write_layout(folder, scorer)
    _show([folder], False)
    _write_page(folder, None)


@evaluation.command(
    "table",
    epilog="[bold]Examples[/bold]\n\npersonaplex eval table runs/fdb --markdown --plots plots",
)
def table(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs of one suite.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="WHO,WHO,...",
            help="Published results beside ours: card, paper, kyutai; or none.",
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
    """Print the scores of runs beside each other and beside published results."""
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


@evaluation.command("selftest", epilog="[bold]Examples[/bold]\n\npersonaplex eval selftest")
def selftest(
    per_kind: Annotated[int, typer.Option(min=1, help="Calls of each kind of event for nano.")] = 2,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print every comparison.")] = False,
) -> None:
    """Check the scorers: agents whose scores are known exactly, and nano within ranges.

    Needs neither data nor a network, and takes less than a minute on two CPU cores.
    """
    from pipecat_personaplex.eval.selftest import check_nano, check_scripted, record_voice

    started = time.monotonic()
    with _load("nano", EngineConfig(device="cpu", max_sessions=_DEFAULT_SESSIONS)) as engine:
        scripted = list(check_scripted(record_voice(engine)))
        nano = list(check_nano(engine, per_kind))
    for check in [*scripted, *nano]:
        if verbose or not check.passed or check.agent == "nano":
            typer.echo(str(check))
    failed = sum(not check.passed for check in [*scripted, *nano])
    typer.echo(
        f"{len(scripted)} exact scores of scripted agents and {len(nano)} ranges of nano in "
        f"{time.monotonic() - started:.0f} s: {failed} wrong"
    )
    if failed:
        raise EngineError("the self-test failed: the scorers or the engine are broken")


@evaluation.command(
    "speed", epilog="[bold]Examples[/bold]\n\npersonaplex eval speed --model nano --sessions 1,16"
)
@engine_options()
def speed(
    options: EngineOptions,
    sessions: Annotated[
        str, typer.Option(metavar="N,N,...", help="Calls at once, one measurement for each.")
    ] = "1,16",
    per_kind: Annotated[int, typer.Option(min=1, help="Calls of each kind of event.")] = 4,
) -> None:
    """Measure calls a second, one at a time and in batches, and compare their tokens."""
    from pipecat_personaplex.eval.batch_speed import measure_batches

    try:
        counts = [int(part) for part in sessions.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ConfigError(f"--sessions must be numbers like 1,16, not {sessions!r}")
    model = options.resolve_model()
    measure_batches(
        lambda count: _load(model, replace(options.config, max_sessions=count)),
        counts,
        per_kind,
        typer.echo,
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that ``--seeds`` names.

    Raises:
        ConfigError: The text is not a number from 1 on, or a list of different numbers.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] >= 1:
        return tuple(range(numbers[0]))
    if len(numbers) < 2 or len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ConfigError(
            f"--seeds must be how many, such as 3, or which, such as 0,7,9; not {text!r}"
        )
    return tuple(numbers)


def _load(model: str, config: EngineConfig) -> Engine:
    from pipecat_personaplex.engine.engine import Engine

    return Engine.load(model, config, progress=sys.stderr.isatty())


def _add_voice(engine: Engine, voice: str | None, file: Path | None) -> str:
    """Return the name of the voice; a recording is added to the engine."""
    if file is not None:
        engine.add_voice(file.stem, file)
        return file.stem
    name = voice or next(iter(engine.voices), "")
    if name not in engine.voices:
        raise VoiceNotFound(name, engine.voices)
    return name


def _scorer(asr: str, vad: Literal["energy", "silero"], judge: str, rules: str) -> Scorer:
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


def _score(run: RunFolder, scorer: Scorer) -> None:
    from pipecat_personaplex.cli.progress import progress_bar
    from pipecat_personaplex.eval.score_run import score_run

    with progress_bar(f"scoring with {scorer.asr}") as bar:
        score_run(run, scorer, bar)


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


def _write_page(run: RunFolder, path: Path | None) -> None:
    from pipecat_personaplex.eval.page import write_page

    typer.echo(f"page: {write_page(run, path)}")


def _write_layout(run: RunFolder, scorer: Scorer) -> None:
    from pipecat_personaplex.eval.fdb_layout import write_layout
    from pipecat_personaplex.eval.score_run import safe_name, transcribe

    calls = [call for call in run.calls() if not call.error]
    if not calls:
        raise UserError(f"{run.path} has no finished calls")
    transcripts = [(call, transcribe(run, call, scorer)) for call in calls]
    folder = write_layout(run, safe_name(scorer.asr), transcripts)
    typer.echo(f"for Full-Duplex-Bench's own scripts: {folder}")
