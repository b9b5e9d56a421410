"""``personaplex voices``: what voices there are, and new ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.cli.options import Device, ForDevice, Model, chosen_model
from pipecat_personaplex.config import AUTO_MODEL, EngineConfig
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import VoiceError

_SUFFIXES = (".pt", ".safetensors")

voices = typer.Typer(no_args_is_help=True, help="List a checkpoint's voices, or make new ones.")


@voices.command(
    "list",
    epilog="""[bold]Example[/bold]

personaplex voices list --model ./personaplex-7b-v1""",
)
def list_voices(model: Model = AUTO_MODEL, device: ForDevice = "auto") -> None:
    """List the voices that a checkpoint has.

    A voice is the first part of the prompt: its frames, 80 ms each, take room in the model's
    window.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipecat_personaplex.checkpoint.voices import VoiceLibrary

    chosen = chosen_model(model, device)
    library = VoiceLibrary.of_model(chosen, progress=sys.stderr.isatty())
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
def encode(
    recording: Annotated[
        Path,
        typer.Argument(
            help="One speaker, about ten seconds: any audio file that libsndfile reads.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The voice: .pt, as NVIDIA's server loads it, or .safetensors.",
        ),
    ],
    model: Model = AUTO_MODEL,
    device: Device = "auto",
    dtype: Annotated[
        Literal["bfloat16", "float32"],
        typer.Option(
            help="Of the voice's embeddings. NVIDIA's server needs its model's: bfloat16.",
            rich_help_panel="Model",
        ),
    ] = "bfloat16",
) -> None:
    """Make a voice file of a recording, for this checkpoint.

    As --voice, the file sounds as the recording does, and need not be encoded for each run.
    """
    if output.suffix not in _SUFFIXES:
        raise VoiceError(f"--output {output}: a voice file ends in {' or '.join(_SUFFIXES)}")
    check_outputs({"--output": output}, [recording])
    config = EngineConfig(device=device, dtype=dtype, max_sessions=1)

    from pipecat_personaplex.audio import read_audio
    from pipecat_personaplex.checkpoint.voices import export_voice
    from pipecat_personaplex.engine.engine import Engine

    pcm = read_audio(recording)
    engine = Engine.load(chosen_model(model, device), config, progress=sys.stderr.isatty())
    voice = engine.encode_voice(pcm, output.stem)
    assert voice.codes is not None, "an encoded voice has codes"
    checkpoint = engine.checkpoint
    with whole_files([output]) as (temporary,):
        export_voice(voice.codes, checkpoint.lm, checkpoint.config, temporary)
    typer.echo(f"{output}: {voice.frames} frames, {voice.frames * FRAME_SECONDS:.2f} s")
