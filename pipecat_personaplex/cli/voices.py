"""``personaplex voices``: list the voices of a checkpoint, and make new ones."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.cli.options import EngineOptions, engine_options
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import VoiceError

_SUFFIXES = (".pt", ".safetensors")

voices = typer.Typer(
    no_args_is_help=True, help="List the voices of a checkpoint, or make new ones."
)


@voices.command(
    "list",
    epilog="""[bold]Example[/bold]

personaplex voices list --model ./personaplex-7b-v1""",
)
@engine_options("model", "device")
def list_voices(options: EngineOptions) -> None:
    """List the voices of a checkpoint.

    A voice is the first part of the prompt: its frames of 80 ms take up that many frames of the
    model's window.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipecat_personaplex.checkpoint.voices import VoiceLibrary

    library = VoiceLibrary.of_model(options.resolve_model(), progress=sys.stderr.isatty())
    table = Table("name", box=box.SIMPLE)
    table.add_column("frames", justify="right")
    table.add_column("seconds", justify="right")
    for name in library.names:
        frames = library.get(name).frames
        table.add_row(name, str(frames), f"{frames * FRAME_SECONDS:.2f}")
    Console(highlight=False).print(table)


@voices.command(
    epilog="""[bold]Examples[/bold]

personaplex voices encode owen.wav -o owen.pt

personaplex offline --voice owen.pt --input caller.wav --output agent.wav"""
)
@engine_options("model", "adapter", "device")
def encode(
    recording: Annotated[
        Path,
        typer.Argument(
            help="A recording of one speaker, about ten seconds: any audio file that libsndfile or "
            "FFmpeg reads.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The voice file to write: .pt, which NVIDIA's server also loads, or .safetensors.",
        ),
    ],
    options: EngineOptions,
    dtype: Annotated[
        Literal["bfloat16", "float32"],
        typer.Option(
            help="Data type of the stored embeddings. NVIDIA's server needs that of its model, "
            "bfloat16.",
            rich_help_panel="Model",
        ),
    ] = "bfloat16",
) -> None:
    """Make a voice file from a recording, for one checkpoint.

    As --voice, the file sounds the same as the recording, and need not be encoded in each run.
    """
    if output.suffix.lower() not in _SUFFIXES:
        raise VoiceError(f"--output {output}: a voice file ends in {' or '.join(_SUFFIXES)}")
    check_outputs({"--output": output}, [recording])
    config = replace(options.config, dtype=dtype, max_sessions=1)

    from pipecat_personaplex.audio_files import read_audio
    from pipecat_personaplex.checkpoint.voices import MAX_RECORDING_SECONDS, export_voice
    from pipecat_personaplex.engine.engine import Engine

    pcm = read_audio(recording, max_seconds=MAX_RECORDING_SECONDS)
    engine = Engine.load(options.resolve_model(), config, progress=sys.stderr.isatty())
    voice = engine.encode_voice(pcm, output.stem)
    assert voice.codes is not None, "an encoded voice has codes"
    checkpoint = engine.checkpoint
    with whole_files([output]) as (temporary,):
        export_voice(voice.codes, checkpoint.lm, checkpoint.config, temporary)
    typer.echo(f"{output}: {voice.frames} frames, {voice.frames * FRAME_SECONDS:.2f} s")
