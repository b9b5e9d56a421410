"""``personaplex quantize``: write a checkpoint with low-bit weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipecat_personaplex import config
from pipecat_personaplex.cli.options import EngineOptions, engine_options

EXAMPLES = """[bold]Examples[/bold]

personaplex quantize --model nvidia/personaplex-7b-v1 --quantization int8 --output ./7b-int8

personaplex serve --model ./7b-int8"""


@engine_options("model", "device")
def quantize(
    quantization: Annotated[
        config.Quantization,
        typer.Option(
            help="Format of the transformers' weights, compared with bfloat16: int8 and fp8 take "
            "half the space. int4 takes little more than a quarter: 4 bits in groups of 128, with "
            "the depth transformer in int8.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="The folder to create."),
    ],
    options: EngineOptions,
) -> None:
    """Write a folder with low-bit weights, which loads faster and needs no --quantization.

    The folder has the layout of a release. The model computes the same as the release with the
    same --quantization. `personaplex drift` measures what that costs in quality.
    """
    from pipecat_personaplex.checkpoint.export import save_quantized
    from pipecat_personaplex.checkpoint.hub import resolve
    from pipecat_personaplex.checkpoint.layout import MODEL_FILE
    from pipecat_personaplex.checkpoint.loader import loading_bar

    show_progress = sys.stderr.isatty()
    folder = resolve(options.resolve_model(), progress=show_progress)
    with loading_bar(show_progress, "quantizing the model") as progress:
        save_quantized(folder, output, quantization, progress)
    before, after = ((path / MODEL_FILE).stat().st_size for path in (folder, output))
    typer.echo(f"{output}: {MODEL_FILE} {before / 1e9:.2f} -> {after / 1e9:.2f} GB")
