"""``personaplex eval``: run, score and compare full-duplex benchmarks."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipecat_personaplex.cli.eval_latency import EXAMPLES as LATENCY_EXAMPLES
from pipecat_personaplex.cli.eval_latency import latency
from pipecat_personaplex.cli.eval_score import (
    SCORE_EXAMPLES,
    TABLE_EXAMPLES,
    make_scorer,
    score_and_show,
    table,
    write_layout_of,
)
from pipecat_personaplex.cli.eval_score import score as score_
from pipecat_personaplex.cli.options import (
    EngineOptions,
    engine_options,
    preset_name,
    voice_file,
)
from pipecat_personaplex.config import EngineConfig, SamplingParams
from pipecat_personaplex.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from pipecat_personaplex.engine.engine import Engine

evaluation = typer.Typer(
    no_args_is_help=True,
    help="Measure how an agent behaves in a call: in pauses, after turns, when it is interrupted. "
    "[bold]run[/bold] plays the recorded callers of a benchmark to the agent and stores what it "
    "says; it also scores with the model's own words. [bold]score[/bold] adds scores by another "
    "transcriber or judge. [bold]table[/bold] compares runs with published results.",
)
_MAX_SEEDS = 1_000
_SUITES = (
    "[bold]fdb-v1[/bold] and [bold]fdb-v1.5[/bold] (Full-Duplex-Bench), [bold]humdial[/bold] "
    "(HumDial-FDBench), [bold]service[/bold] (questions to an agent with a role), "
    "[bold]folder[/bold] (your recordings), [bold]nano[/bold] (208 generated calls for the bundled "
    "model)"
)
_DEFAULT_SESSIONS = 16
_DEFAULT_SEEDS = 3


@evaluation.command(
    "run",
    epilog="""[bold]Examples[/bold]

personaplex eval run nano --model nano --out runs/nano

personaplex eval run fdb-v1 --data fdb/v1.0 --voice NATF2 --sessions 64 --out runs/fdb

personaplex eval run folder --data calls --seeds 5 --limit 10 --out runs/calls""",
)
@engine_options()
def run_(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help=f"The benchmark: {_SUITES}.")],
    options: EngineOptions,
    out: Annotated[
        Path,
        typer.Option(
            metavar="RUN",
            help="The folder of this run. If it holds a stopped run, that is continued.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder with the benchmark's data. nano and service need none."
        ),
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
            help="Seeds of the sampling: a number of seeds (3 is 0,1,2), or a list. Each recording "
            "is run once with each seed.",
        ),
    ] = str(_DEFAULT_SEEDS),
    sessions: Annotated[
        int, typer.Option(min=1, help="Number of calls in a batch.")
    ] = _DEFAULT_SESSIONS,
    limit: Annotated[
        int, typer.Option(min=0, help="At most so many recordings of each group; 0 for all.")
    ] = 0,
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
    """Run a benchmark: every recording with every seed, many calls at once.

    Calls run as fast as the machine computes them. Times are positions in the audio, so a busy
    machine changes no score. Each call is written when it ends.
    """
    from pipecat_personaplex.eval.suites.registry import find_suite

    chosen = find_suite(suite)
    numbers = parse_seeds(seeds)
    sampling = SamplingParams(
        temperature_audio=temperature_audio, temperature_text=temperature_text
    )

    from pipecat_personaplex.cli.progress import rate_bar
    from pipecat_personaplex.eval.run_folder import RunFolder
    from pipecat_personaplex.eval.run_suite import (
        Plan,
        describe_run,
        run_suite,
        take_inventory,
    )
    from pipecat_personaplex.eval.run_target import check_target, only_writer

    # Mistakes show before gigabytes of weights are loaded.
    check_target(out)
    recorded = voice_file(voice)
    plan = Plan(chosen, data, "", numbers, sampling, limit, voice_file=recorded)
    inventory = take_inventory(plan)
    model = options.resolve_model()
    plan = replace(plan, voice=recorded.stem if recorded else preset_name(model, voice))
    with only_writer(out):  # before the weights are loaded, too
        engine = _load(model, replace(options.config, max_sessions=sessions))
        if recorded is not None:
            engine.add_voice(plan.voice, recorded)
        run = RunFolder.create(out, describe_run(plan, inventory, engine, model))
        try:
            with engine, rate_bar(chosen.title, "calls a second") as bar:
                result = run_suite(engine, plan, run, inventory.items, bar)
        except KeyboardInterrupt:
            total = inventory.items * len(numbers)
            done = f"{out}: {len(run.calls())} of {total} calls are finished"
            typer.echo(f"{done}; the same command goes on", err=True)
            raise
    typer.echo(
        f"{out}: {result.calls} calls in {result.seconds:.1f} s, {result.calls_per_second:.2f} "
        f"calls a second, {result.audio_seconds / max(result.seconds, 1e-9):.1f} times real "
        f"time; {result.failed} failed"
    )
    if result.failed:
        last = [call for call in run.calls() if call.error][-1]
        typer.echo(f"{last.id}: {last.error}; {out / 'items.jsonl'} has the others", err=True)
        if not any(not call.error for call in run.calls()):
            raise EngineError(f"every call failed, the last one with: {last.error}")
    if score:
        known = any(call.wanted for call in run.calls())
        score_and_show(run, make_scorer(judge="rules" if known else "none"))
    write_layout_of(run, make_scorer())


evaluation.command("score", epilog=SCORE_EXAMPLES)(score_)
evaluation.command("table", epilog=TABLE_EXAMPLES)(table)
evaluation.command("latency", epilog=LATENCY_EXAMPLES)(latency)


@evaluation.command("selftest", epilog="[bold]Examples[/bold]\n\npersonaplex eval selftest")
def selftest(
    per_kind: Annotated[int, typer.Option(min=1, help="Calls of nano for each kind of event.")] = 2,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print every comparison.")] = False,
) -> None:
    """Check the scorers: agents whose scores are known exactly, and nano within ranges.

    Needs neither data nor a network, and takes less than a minute on two CPU cores. Outside a
    checkout, espeak-ng speaks the callers.
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
        str,
        typer.Option(
            metavar="N,N,...", help="Numbers of calls in a batch; one measurement for each."
        ),
    ] = "1,16",
    per_kind: Annotated[
        int, typer.Option(min=1, help="Calls of each of the eight kinds of event.")
    ] = 4,
) -> None:
    """Measure calls a second, one at a time and in a batch.

    Runs the same generated calls with each number of sessions, and fails if a token differs.
    Outside a checkout, espeak-ng speaks the callers.
    """
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
        ConfigError: The text is not a number from 1 to 1,000, or a list of different numbers.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and 1 <= numbers[0] <= _MAX_SEEDS:
        return tuple(range(numbers[0]))
    if len(numbers) < 2 or len(set(numbers)) != len(numbers) or min(numbers) < 0:
        raise ConfigError(
            f"--seeds must be a number of seeds from 1 to {_MAX_SEEDS}, such as 3, or a list of "
            f"different seeds, such as 0,7,9; not {text!r}"
        )
    return tuple(numbers)


def _load(model: str, config: EngineConfig) -> Engine:
    from pipecat_personaplex.engine.engine import Engine

    return Engine.load(model, config, progress=sys.stderr.isatty())
