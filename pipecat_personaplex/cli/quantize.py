"""``personaplex quantize``: write a checkpoint with low-bit weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipecat_personaplex import config
from pipecat_personaplex.cli.options import EngineOptions, engine_options
from pipecat_personaplex.cli.progress import progress_bar

EXAMPLES = """[bold]Examples[/bold]

personaplex quantize --model nvidia/personaplex-7b-v1 --quantization int8 --output ./7b-int8

personaplex serve --model ./7b-int8"""


@engine_options("model", "adapter", "device")
def quantize(
    quantization: Annotated[
        config.Quantization,
        typer.Option(
            help="Format of the transformers' weights. int8 and fp8 take half the space of "
            "bfloat16. int4 takes little more than a quarter: 4 bits in groups of 128, and int8 in "
            "the depth transformer.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="The folder to create."),
    ],
    options: EngineOptions,
) -> None:
    """Write a folder with low-bit weights, which loads faster and needs no --quantization.

    The folder has the layout of a release, with the adapter, if any, merged into its weights. The
    model computes the same as the release with the same --quantization and --adapter. `personaplex
    drift` measures what low-bit weights cost in quality.
    """
    from pipecat_personaplex.checkpoint.adapter_file import find_adapter
    from pipecat_personaplex.checkpoint.checkpoint_files import CheckpointFiles
    from pipecat_personaplex.checkpoint.export import check_new_folder, save_quantized
    from pipecat_personaplex.checkpoint.file_names import MODEL_FILE
    from pipecat_personaplex.checkpoint.hub import resolve_folder

    check_new_folder(output)
    bars, requested = sys.stderr.isatty(), options.config.adapter
    folder = resolve_folder(options.resolve_model(), progress=bars)
    adapter = find_adapter(requested, progress=bars) if requested else None
    with progress_bar("quantizing the model") as progress:
        save_quantized(folder, output, quantization, progress, adapter)
    before = CheckpointFiles.of(folder).model.stat().st_size
    after = (output / MODEL_FILE).stat().st_size
    typer.echo(f"{output}: {MODEL_FILE} {before / 1e9:.2f} -> {after / 1e9:.2f} GB")
