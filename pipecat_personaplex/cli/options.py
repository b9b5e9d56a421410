"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipecat_personaplex import config
from pipecat_personaplex.config import AUTO_MODEL
from pipecat_personaplex.errors import ConfigError, VoiceError

Model = Annotated[
    str,
    typer.Option(
        envvar="PERSONAPLEX_MODEL",
        metavar="auto|nano|FOLDER|REPO",
        help="A folder with a release's files, or a Hugging Face repo id such as "
        "nvidia/personaplex-7b-v1, of which what is not in the Hub's cache yet is downloaded "
        "(17 GB); or nano, the small model that comes along. auto takes the 7B where there are a "
        "CUDA GPU and access to it, else nano.",
        rich_help_panel="Model",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        envvar="PERSONAPLEX_DEVICE",
        metavar="auto|cpu|cuda|cuda:N",
        help="Where the model runs; auto takes a CUDA device where there is one.",
        rich_help_panel="Model",
    ),
]
ForDevice = Annotated[
    str,
    typer.Option(
        "--device",
        envvar="PERSONAPLEX_DEVICE",
        metavar="auto|cpu|cuda|cuda:N",
        help="Where the model is to run: what --model auto takes depends on it.",
        rich_help_panel="Model",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        help="Of the language model; auto is bfloat16 on CUDA and float32 on a CPU.",
        rich_help_panel="Model",
    ),
]
Quantization = Annotated[
    config.Quantization | None,
    typer.Option(
        envvar="PERSONAPLEX_QUANTIZATION",
        help="Keep the transformers' weights at 8 or 4 bits: less memory, faster. On CUDA, fp8 "
        "needs compute capability 8.9 (Ada, Hopper).",
        rich_help_panel="Model",
    ),
]
KVDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "fp8"],
    typer.Option(
        envvar="PERSONAPLEX_KV_DTYPE",
        help="In which keys and values are kept; auto is --dtype. fp8 makes room for nearly twice "
        "as many callers as bfloat16; on CUDA it needs compute capability 8.9 (Ada, Hopper).",
        rich_help_panel="Model",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        envvar="PERSONAPLEX_CONTEXT",
        min=0,
        metavar="FRAMES",
        help="How far back the model remembers, in frames of 80 ms; 0 is as far as it was made "
        "for. Fewer make room for more callers, and what is longer ago is forgotten, the persona "
        "included.",
        rich_help_panel="Model",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        help="Of the model on a CPU; 0 takes one for a small model, which more only slow down, "
        "and torch's choice for others.",
        rich_help_panel="Model",
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="On CUDA, launch each step as one graph, captured at the start: much faster. A step "
        "that cannot be captured runs without, with a warning.",
        rich_help_panel="Model",
    ),
]


def chosen_model(model: str, device: str) -> str:
    """The model that ``--model`` means; where the choice is ours, a line says so."""
    if model != AUTO_MODEL:  # without torch
        return model
    from pipecat_personaplex.checkpoint.hub import resolve_model

    chosen, note = resolve_model(model, device)
    typer.echo(note, err=True)
    return chosen


def named_voice(text: str) -> tuple[str, Path]:
    """Name and file of an ``--add-voice``.

    Raises:
        ConfigError: It is something else.
        VoiceError: There is no such file.
    """
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"--add-voice is NAME=FILE, as owen=owen.wav, not {text!r}")
    if not Path(file).is_file():
        raise VoiceError(f"--add-voice {text}: there is no file {file}")
    return name, Path(file)
