"""``personaplex bench``: how fast a model steps here."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Literal

import typer

from pipecat_personaplex.cli.options import (
    BEST,
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
from pipecat_personaplex.errors import ConfigError

EXAMPLES = """[bold]Examples[/bold]

personaplex bench --model ./personaplex-7b-v1 --sessions 1,2,4,8

personaplex bench --random-1b --threads 2 --peer moshi

The last line is JSON, for scripts: personaplex bench --random-7b | tail -n 1 | jq .sessions"""


def bench(
    model: Model = BEST,
    random_1b: Annotated[
        bool,
        typer.Option(
            "--random-1b",
            help="Measure a 1B model of random weights instead: real speed, and noise for sound.",
            rich_help_panel="Model",
        ),
    ] = False,
    random_7b: Annotated[
        bool,
        typer.Option(
            "--random-7b",
            help="Measure the 7B architecture with random weights.",
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
        typer.Option(min=1, help="Steps timed for each row.", rich_help_panel="Measurement"),
    ] = 200,
    prompt_frames: Annotated[
        int,
        typer.Option(
            min=2,
            help="Length of the prompt, which is also where the timed calls start.",
            rich_help_panel="Measurement",
        ),
    ] = 300,
    peer: Annotated[
        Literal["moshi"] | None,
        typer.Option(
            help="Also time PyPI moshi on the same architecture, taking turns with ours.",
            rich_help_panel="Measurement",
        ),
    ] = None,
) -> None:
    """Measure step times, prompts and memory.

    Step times are from a frame's audio in to the answer's audio out, sampling on. Prompts are
    measured stepped as the reference replays them, computed in parallel, and from the cache.
    """
    from pipecat_personaplex.bench import BenchOptions, run

    if random_1b and random_7b:
        raise ConfigError("choose one of --random-1b and --random-7b")
    random = "random-1b" if random_1b else "random-7b" if random_7b else None
    options = BenchOptions(
        model=random or model,
        sessions=_numbers(sessions),
        frames=frames,
        prompt_frames=prompt_frames,
        device=device,
        dtype=dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        context=context,
        threads=threads,
        cuda_graphs=cuda_graphs,
        peer=peer is not None,
    )
    if random is None:  # after a mistake in any option would have shown
        options = replace(options, model=chosen_model(model, device))
    report = run(options, typer.echo)
    typer.echo(json.dumps(report))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--sessions must be numbers like 1,2,4,8, not {text!r}") from None
