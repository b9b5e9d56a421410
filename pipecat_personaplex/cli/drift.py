"""``personaplex drift``: measure what low-bit weights, keys and values cost in quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipecat_personaplex.cli.options import (
    EngineOptions,
    engine_config_for,
    engine_options,
)
from pipecat_personaplex.cli.progress import progress_bar

EXAMPLES = """[bold]Examples[/bold]

personaplex drift --model ./personaplex-7b-v1 --quantization int8

personaplex drift --model ./personaplex-7b-v1 --kv-dtype fp8

personaplex drift --model random-1b --quantization int4 --frames 20

personaplex drift --dtype bfloat16 --input caller.wav --frames 3000

The last line is JSON, for scripts: personaplex drift --quantization int8 | tail -n 1 | jq"""


# The comparison captures no CUDA graphs: every option but --cuda-graphs.
@engine_options(
    "model", "adapter", "device", "dtype", "quantization", "kv_dtype", "context", "threads"
)
def drift(
    ctx: typer.Context,
    options: EngineOptions,
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="A recording of the caller, repeated up to the length of the conversation.",
            show_default="silence",
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
        typer.Option(
            min=0, help="Seed of the sampled conversation.", rich_help_panel="Measurement"
        ),
    ] = 0,
) -> None:
    """Compare a model in the precision it is served in with the same model in float32.

    The float32 model samples a conversation. The served model then gets the same tokens at every
    frame. For the text and each codebook the report has: the error of the logits relative to
    their standard deviation, how often both models prefer the same token, the KL divergence of
    the distributions in nats, and the error in the first and the last tenth of the conversation.
    """
    from pipecat_personaplex.audio_files import read_audio
    from pipecat_personaplex.bench.drift import DriftOptions, run

    # The recording is read first: a mistake in its name shows before gigabytes are loaded.
    user = None if input_ is None else read_audio(input_)
    model = options.resolve_model()
    config = engine_config_for(ctx, model, options.config)
    drift_options = DriftOptions(model, frames, user, config, seed)
    lines: list[str] = []  # printed once the bar is gone
    with progress_bar("comparing") as progress:
        report = run(drift_options, lines.append, progress)
    typer.echo("\n".join([*lines, json.dumps(report)]))
