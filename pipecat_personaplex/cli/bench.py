"""``personaplex bench``: measure how fast a model steps on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipecat_personaplex.bench.measurements import (
    DEFAULT_MAX_SECONDS,
    MEASUREMENTS,
    BenchOptions,
    require_tools,
)
from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.cli.options import (
    EngineOptions,
    engine_config_for,
    engine_options,
    integers,
    on_command_line,
)
from pipecat_personaplex.errors import ConfigError

EXAMPLES = """[bold]Examples[/bold]

personaplex bench --model ./personaplex-7b-v1 --sessions 1,2,4,8

personaplex bench --random-1b --threads 2 --peer moshi

personaplex bench --random-7b --sessions 1,64 --fill full --minutes 10 --histogram steps.png

personaplex bench --random-7b --measure parts,bandwidth --markdown

The last line is JSON, for scripts: personaplex bench --random-7b | tail -n 1 | jq .sessions"""


@engine_options(
    "model",
    "adapter",
    "device",
    "dtype",
    "quantization",
    "kv_dtype",
    "context",
    "threads",
    "cuda_graphs",
)
def bench(
    ctx: typer.Context,
    options: EngineOptions,
    random_1b: Annotated[
        bool,
        typer.Option(
            "--random-1b",
            help="Measure a 1B model with random weights: real speed, but the sound is noise. "
            "The same as --model random-1b.",
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
    measure: Annotated[
        str,
        typer.Option(
            metavar="WHAT,WHAT,...",
            help="[bold]prompts[/bold]: prefill step by step, in parallel, and from the cache; and "
            "a new prompt for a running call, beside the callers of the largest batch. "
            "[bold]steps[/bold]: the whole step, from audio in to audio out. "
            "[bold]parts[/bold]: each part of a step, and how long it would take to only read its "
            "bytes once. [bold]bandwidth[/bold]: bytes per second of attention over full windows "
            "and of the gated MLPs, which hold most weights, relative to reading memory.",
            rich_help_panel="Measurement",
        ),
    ] = ",".join(MEASUREMENTS),
    sessions: Annotated[
        str,
        typer.Option(
            metavar="N,N,...",
            help="Batch sizes: sessions in one step. Each has a row in the report.",
            rich_help_panel="Measurement",
        ),
    ] = "1,2,4,8",
    frames: Annotated[
        int,
        typer.Option(
            min=1,
            help="Timed steps for each row; a meaningful p99.9 needs thousands.",
            rich_help_panel="Measurement",
        ),
    ] = 200,
    prompt_frames: Annotated[
        int,
        typer.Option(
            min=2,
            help="Length of the prompt in frames of 80 ms. The timed sessions start after it.",
            rich_help_panel="Measurement",
        ),
    ] = 300,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="full|N",
            help="Start the timed sessions with N frames of their windows filled. full is a call "
            "longer than its window (for the 7B, four minutes), where steps are slowest.",
            show_default="--prompt-frames",
            rich_help_panel="Measurement",
        ),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(
            min=0,
            help="For each row, also step in real time for so many minutes, such as 0.5: the "
            "frames of all sessions arrive together every 80 ms. Count the frames that take "
            "longer than 80 ms. 0 skips this.",
            rich_help_panel="Measurement",
        ),
    ] = 0.0,
    peer: Annotated[
        Literal["moshi"] | None,
        typer.Option(
            help="Also time moshi from PyPI on the same architecture, as its server runs it, "
            "alternating with this package.",
            rich_help_panel="Measurement",
        ),
    ] = None,
    max_seconds: Annotated[
        float,
        typer.Option(
            min=1,
            help="Most seconds for each slow comparison: the prompt that is stepped frame by "
            "frame, and each program of --peer. Fewer frames are timed if needed, and the report "
            "says how many.",
            rich_help_panel="Measurement",
        ),
    ] = DEFAULT_MAX_SECONDS,
    histogram: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write a histogram of the step times, with percentiles and a mark at 80 ms.",
            rich_help_panel="Report",
        ),
    ] = None,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown",
            help="Also print the report as Markdown tables, with device, driver, versions and "
            "commit.",
            rich_help_panel="Report",
        ),
    ] = False,
) -> None:
    """Measure step times, prompts, memory, and how far they are from the hardware's limit.

    A step time runs from the audio of a frame in to the audio of a frame out, sampling included.
    The memory plan is checked before the model is loaded. The limit of a part is the time that
    reading its bytes once takes on this machine. The verdict says how many of the measured callers
    are in time, and what takes too long for more. The difference between a step and the sum of its
    parts is spent on launching kernels and on copies between host and device.
    """
    # PERSONAPLEX_MODEL is a default: --random-1b and --random-7b override it.
    if on_command_line(ctx, "model") + random_1b + random_7b > 1:
        raise ConfigError("choose one of --model, --random-1b and --random-7b")
    random = "random-1b" if random_1b else "random-7b" if random_7b else None
    bench_options = BenchOptions(
        model=random or options.model,
        engine=options.config,
        sessions=integers("--sessions", sessions, "1,2,4,8"),
        frames=frames,
        prompt_frames=prompt_frames,
        fill=_fill(fill),
        minutes=minutes,
        max_seconds=max_seconds,
        measure=tuple(measure.split(",")),
        peer=peer is not None,
        histogram=histogram,
    )
    pictures = {} if histogram is None else {"--histogram": histogram}
    check_outputs(pictures, [])
    require_tools(bench_options)
    if random is None:  # Resolved last: every other mistake shows before a download starts.
        bench_options = replace(bench_options, model=options.resolve_model())

    from pipecat_personaplex.bench.histogram import draw_histogram
    from pipecat_personaplex.bench.run import run
    from pipecat_personaplex.bench.table import caption, markdown_tables

    engine = engine_config_for(ctx, bench_options.model, bench_options.engine)
    bench_options = replace(bench_options, engine=engine)
    result = run(bench_options, typer.echo)
    if markdown:
        typer.echo("\n".join(markdown_tables(result.report)))
    typer.echo(json.dumps(result.report))
    # At last: a picture that cannot be written must not cost the figures.
    with whole_files(list(pictures.values())) as files:
        for file in files:
            draw_histogram(result.step_seconds, caption(result.report), file)


def _fill(text: str | None) -> int | Literal["full"] | None:
    if text is None:
        return None
    if text == "full":
        return "full"
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--fill must be full or a number of frames, not {text!r}") from None
