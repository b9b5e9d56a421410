"""``personaplex quantize``: low-bit weights, made once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipecat_personaplex import config
from pipecat_personaplex.cli.options import ForDevice, Model, chosen_model
from pipecat_personaplex.cli.progress import progress_bar
from pipecat_personaplex.config import AUTO_MODEL

EXAMPLES = """[bold]Examples[/bold]

personaplex quantize --model nvidia/personaplex-7b-v1 --quantization int8 --output ./7b-int8

personaplex serve --model ./7b-int8"""


def quantize(
    quantization: Annotated[
        config.Quantization,
        typer.Option(
            help="Of the transformers' weights. int8 and fp8 halve them, int4 (groups of 128; the "
            "depth transformer at int8) nearly quarters them.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="The folder to make."),
    ],
    model: Model = AUTO_MODEL,
    device: ForDevice = "auto",
) -> None:
    """Write a folder with low-bit weights, which loads faster and needs no --quantization.

    It has the release's layout, and computes what the release does with the same --quantization.
    `personaplex drift` tells what that costs in quality.
    """
    from pipecat_personaplex.checkpoint.export import save_quantized
    from pipecat_personaplex.checkpoint.hub import resolve_folder
    from pipecat_personaplex.checkpoint.layout import MODEL_FILE

    folder = resolve_folder(chosen_model(model, device), progress=sys.stderr.isatty())
    with progress_bar("quantizing the model") as progress:
        save_quantized(folder, output, quantization, progress)
    before, after = ((place / MODEL_FILE).stat().st_size for place in (folder, output))
    typer.echo(f"{output}: {MODEL_FILE} {before / 1e9:.2f} -> {after / 1e9:.2f} GB")
