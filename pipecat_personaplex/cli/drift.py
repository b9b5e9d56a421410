"""``personaplex drift``: what low-bit weights, keys and values cost in quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipecat_personaplex.cli.options import (
    Context,
    Device,
    Dtype,
    KVDtype,
    Model,
    Quantization,
    Threads,
    chosen_model,
)
from pipecat_personaplex.cli.progress import progress_bar
from pipecat_personaplex.config import AUTO_MODEL, EngineConfig

EXAMPLES = """[bold]Examples[/bold]

personaplex drift --model ./personaplex-7b-v1 --quantization int8

personaplex drift --model ./personaplex-7b-v1 --kv-dtype fp8

personaplex drift --model random-1b --quantization int4 --frames 20

personaplex drift --dtype bfloat16 --input caller.wav --frames 3000

The last line is JSON, for scripts: personaplex drift --quantization int8 | tail -n 1 | jq"""


def drift(
    model: Model = AUTO_MODEL,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    kv_dtype: KVDtype = "auto",
    context: Context = 0,
    threads: Threads = 0,
    user: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="What the caller says, repeated as needed; silence if not given.",
            rich_help_panel="Measurement",
        ),
    ] = None,
    frames: Annotated[
        int,
        typer.Option(
            min=20,
            help="Length of the conversation, in frames of 80 ms.",
            rich_help_panel="Measurement",
        ),
    ] = 1_500,
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of the conversation.", rich_help_panel="Measurement"),
    ] = 0,
) -> None:
    """Compare a model as it is served with itself in float32.

    Both get the same tokens at every frame. For the text and each codebook the report has the
    error of the logits in relation to their spread, how often the likeliest token is the same,
    how far the distributions are apart, and whether the error grows over the conversation.
    """
    from pipecat_personaplex.bench.drift import DriftOptions, run

    engine = EngineConfig(
        device=device,
        dtype=dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        context=context,
        cpu_threads=threads,
    )
    options = DriftOptions(chosen_model(model, device), frames, user, engine, seed)
    lines: list[str] = []
    with progress_bar("comparing") as progress:
        report = run(options, lines.append, progress)
    typer.echo("\n".join([*lines, json.dumps(report)]))
