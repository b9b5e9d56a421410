"""``personaplex bench``: how fast a model steps here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipecat_personaplex.bench.options import MEASUREMENTS, BenchOptions, require_tools
from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.cli.options import (
    Context,
    CudaGraphs,
    Device,
    Dtype,
    KVDtype,
    Model,
    Quantization,
    Threads,
    chosen_model,
)
from pipecat_personaplex.config import AUTO_MODEL, EngineConfig
from pipecat_personaplex.errors import ConfigError

EXAMPLES = """[bold]Examples[/bold]

personaplex bench --model ./personaplex-7b-v1 --sessions 1,2,4,8

personaplex bench --random-1b --threads 2 --peer moshi

personaplex bench --random-7b --sessions 1,64 --fill full --minutes 10 --histogram steps.png

personaplex bench --random-7b --measure parts,bandwidth --markdown

The last line is JSON, for scripts: personaplex bench --random-7b | tail -n 1 | jq .sessions"""


def bench(
    ctx: typer.Context,
    model: Model = AUTO_MODEL,
    random_1b: Annotated[
        bool,
        typer.Option(
            "--random-1b",
            help="Measure a 1B model of random weights: real speed, and noise for sound. The same "
            "as --model random-1b.",
            rich_help_panel="Model",
        ),
    ] = False,
    random_7b: Annotated[
        bool,
        typer.Option(
            "--random-7b",
            help="Measure the 7B architecture with random weights. The same as --model random-7b.",
            rich_help_panel="Model",
        ),
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    kv_dtype: KVDtype = "auto",
    context: Context = 0,
    threads: Threads = 0,
    cuda_graphs: CudaGraphs = True,
    measure: Annotated[
        str,
        typer.Option(
            metavar="WHAT,WHAT,...",
            help="[bold]prompts[/bold]: stepped, in parallel and from the cache. "
            "[bold]steps[/bold]: audio in to audio out. [bold]parts[/bold]: a step taken apart, "
            "and what reading each part's bytes once would take. [bold]bandwidth[/bold]: "
            "attention over full windows, and the gated MLPs, which hold most weights, against a "
            "copy.",
            rich_help_panel="Measurement",
        ),
    ] = ",".join(MEASUREMENTS),
    sessions: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Callers in a step, one row of the report each.",
            rich_help_panel="Measurement",
        ),
    ] = "1,2,4,8",
    frames: Annotated[
        int,
        typer.Option(
            min=1,
            help="Steps timed for each row; p99.9 wants thousands.",
            rich_help_panel="Measurement",
        ),
    ] = 200,
    prompt_frames: Annotated[
        int,
        typer.Option(
            min=2,
            help="Length of the prompt, which is also where the timed calls start.",
            rich_help_panel="Measurement",
        ),
    ] = 300,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="full|N",
            help="Start the timed calls with so many frames of their windows filled instead: "
            "full is a call of more than four minutes, the slowest there is.",
            rich_help_panel="Measurement",
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="For each row, also step in real time for so long, everyone's frame at once, and "
            "count what comes later than 80 ms. Fractions are fine.",
            rich_help_panel="Measurement",
        ),
    ] = 0.0,
    peer: Annotated[
        Literal["moshi"] | None,
        typer.Option(
            help="Also time PyPI moshi on the same architecture, as its server runs it, taking "
            "turns with ours.",
            rich_help_panel="Measurement",
        ),
    ] = None,
    histogram: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Draw the step times, with percentiles and the 80 ms line.",
            rich_help_panel="Report",
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown",
            help="Print the report as tables too, with card, driver, versions and commit.",
            rich_help_panel="Report",
        ),
    ] = False,
) -> None:
    """Measure step times, prompts, memory, and how far they are from the limit.

    Step times are from a frame's audio in to the answer's audio out, sampling on. The memory plan
    is checked before a model is loaded. The limit of a part is what a copy's bandwidth makes of
    the bytes it has to read; what the parts do not add up to is the launching of their kernels.
    """
    source = ctx.get_parameter_source("model")
    # What the environment says is a default, which the flags win over.
    named = source is not None and source.name == "COMMANDLINE"
    if named + random_1b + random_7b > 1:
        raise ConfigError("choose one of --model, --random-1b and --random-7b")
    random = "random-1b" if random_1b else "random-7b" if random_7b else None
    options = BenchOptions(
        model=random or model,
        engine=EngineConfig(
            device=device,
            dtype=dtype,
            quantization=quantization,
            kv_dtype=kv_dtype,
            context=context,
            cpu_threads=threads,
            cuda_graphs=cuda_graphs,
        ),
        sessions=_numbers(sessions),
        frames=frames,
        prompt_frames=prompt_frames,
        fill=_fill(fill),
        minutes=minutes,
        measure=tuple(measure.split(",")),
        peer=peer is not None,
        histogram=histogram,
    )
    pictures = {} if histogram is None else {"--histogram": histogram}
    check_outputs(pictures, [])
    require_tools(options)
    if random is None:  # after a mistake in any option would have shown
        options = replace(options, model=chosen_model(model, device))

    from pipecat_personaplex.bench.histogram import draw_histogram
    from pipecat_personaplex.bench.run import run
    from pipecat_personaplex.bench.table import caption, markdown_tables

    result = run(options, typer.echo)
    with whole_files(list(pictures.values())) as files:
        for file in files:
            draw_histogram(result.step_seconds, caption(result.report), file)
    if markdown:
        typer.echo("\n".join(markdown_tables(result.report)))
    typer.echo(json.dumps(result.report))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--sessions must be numbers like 1,2,4,8, not {text!r}") from None


def _fill(text: str | None) -> int | Literal["full"] | None:
    if text is None:
        return None
    if text == "full":
        return "full"
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--fill must be full or a number of frames, not {text!r}") from None
