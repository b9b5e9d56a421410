"""Options that several commands share, and the one decorator that adds them to a command."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.models import OptionInfo

from pipecat_personaplex.config import AUTO_MODEL, EngineConfig
from pipecat_personaplex.errors import ConfigError, VoiceError

Command = Callable[..., None]

Model = Annotated[
    str,
    typer.Option(
        envvar="PERSONAPLEX_MODEL",
        metavar="auto|nano|FOLDER|REPO",
        help="The model: nano, the small model in this package; a folder with the files of a "
        "release; or a Hugging Face repo id such as nvidia/personaplex-7b-v1 (17 GB; files that "
        "are not in the Hub cache are downloaded). auto is the 7B model if there is a CUDA GPU "
        "and access to the repo, otherwise nano.",
        rich_help_panel="Model",
    ),
]
Adapter = Annotated[
    str,
    typer.Option(
        envvar="PERSONAPLEX_ADAPTER",
        metavar="FILE|FOLDER|REPO",
        help="A LoRA adapter in Kyutai's layout, merged into the model's weights while they are "
        "loaded: a safetensors file, a folder with one, or a Hugging Face repo id. Rank and "
        "scaling are read from the config.json in the same folder.",
        show_default="the checkpoint's own, if it names one",
        rich_help_panel="Model",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        envvar="PERSONAPLEX_DEVICE",
        metavar="auto|cpu|cuda|cuda:N",
        help="The device that runs the model; --model auto chooses a model for it. auto is a CUDA "
        "device if there is one, otherwise the CPU.",
        rich_help_panel="Model",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(
        help="Data type of the language model; auto is bfloat16 on CUDA and float32 on a CPU.",
        rich_help_panel="Model",
    ),
]
Quantization = Annotated[
    Literal["auto", "none", "int8", "fp8", "int4"],
    typer.Option(
        envvar="PERSONAPLEX_QUANTIZATION",
        help="Store the weights of the transformers in 8 or 4 bits: less memory and faster steps. "
        "none is the format of the checkpoint; auto is the same if it fits into the free memory, "
        "else int8, else int4. On CUDA, fp8 needs compute capability 8.9 or later (Ada, Hopper).",
        rich_help_panel="Model",
    ),
]


def log_level_option(default: str, panel: str) -> OptionInfo:
    """The option ``--log-level`` of a command, with the default and the panel of its help."""
    option: OptionInfo = typer.Option(
        "--log-level",
        envvar="PERSONAPLEX_LOG_LEVEL",
        metavar="debug|info|warning|error",
        help="Lowest level of log lines that are written to standard error.",
        show_default=default,
        rich_help_panel=panel,
    )
    return option


KVDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "fp8"],
    typer.Option(
        envvar="PERSONAPLEX_KV_DTYPE",
        help="Data type of the stored keys and values; auto is the model's own, but bfloat16 with "
        "low-bit weights on a CPU. fp8 has room for nearly twice as many sessions as bfloat16; on "
        "CUDA it needs compute capability 8.9 or later (Ada, Hopper).",
        rich_help_panel="Model",
    ),
]
Context = Annotated[
    int,
    typer.Option(
        envvar="PERSONAPLEX_CONTEXT",
        min=0,
        metavar="FRAMES",
        help="How far back the model attends, in frames of 80 ms; 0 is the context of the "
        "checkpoint. Fewer frames leave memory for more sessions. The model forgets everything "
        "older.",
        rich_help_panel="Model",
    ),
]
Threads = Annotated[
    int,
    typer.Option(
        min=0,
        help="CPU threads of the model. 0 is one thread for a small model, which more threads "
        "would only slow down, and the default of PyTorch for other models.",
        rich_help_panel="Model",
    ),
]
CudaGraphs = Annotated[
    bool,
    typer.Option(
        "--cuda-graphs/--no-cuda-graphs",
        help="On CUDA, launch each step as one graph that is captured at the start, which is much "
        "faster. If the capture fails, steps run without a graph and a warning is logged.",
        rich_help_panel="Model",
    ),
]

KeepPersona = Annotated[
    bool,
    typer.Option(
        "--keep-persona/--no-keep-persona",
        help="When a call has nearly filled the context, compute its prompt and the newest half of "
        "it again, so that the persona is not forgotten. Without it the oldest frames are "
        "forgotten, the prompt first, as in NVIDIA's code.",
        rich_help_panel="Model",
    ),
]
DcBlocker = Annotated[
    bool | None,
    typer.Option(
        "--dc-blocker/--no-dc-blocker",
        help="Remove the DC offset of callers' sound cards, and rumble below 20 Hz, before the "
        "codec. Without it the release's tokens equal those of NVIDIA's code.",
        show_default="as the checkpoint says: on for nano, off for the release",
        rich_help_panel="Model",
    ),
]


@dataclass(frozen=True)
class EngineOptions:
    """The engine options of one command, after parsing.

    Attributes:
        model: ``--model`` as given: ``"auto"``, ``"nano"``, a folder or a repo id.
        config: All other engine options. A command that sets further fields uses
            ``dataclasses.replace``.
    """

    model: str
    config: EngineConfig

    def resolve_model(self) -> str:
        """Return the model to load; if ``--model auto`` chose it, print which one and why."""
        if self.model != AUTO_MODEL:  # Returns before the import of torch below.
            return self.model
        from pipecat_personaplex.checkpoint.hub import resolve_model

        chosen, note = resolve_model(self.model, self.config.device)
        typer.echo(note, err=True)
        return chosen


def _read_options(
    model: Model = AUTO_MODEL,
    adapter: Adapter = "",
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = "auto",
    kv_dtype: KVDtype = "auto",
    context: Context = 0,
    threads: Threads = 0,
    cuda_graphs: CudaGraphs = True,
    keep_persona: KeepPersona = True,
    dc_blocker: DcBlocker = None,
) -> EngineOptions:
    """Build the options of one command; the parameters are the command-line options."""
    return EngineOptions(
        model,
        EngineConfig(
            adapter=adapter,
            device=device,
            dtype=dtype,
            quantization=None if quantization == "none" else quantization,
            kv_dtype=kv_dtype,
            context=context,
            cpu_threads=threads,
            cuda_graphs=cuda_graphs,
            keep_persona=keep_persona,
            dc_blocker=dc_blocker,
        ),
    )


def engine_options(*names: str) -> Callable[[Command], Command]:
    """Add the engine options to a Typer command.

    The command declares one parameter ``options: EngineOptions``. Typer sees the command-line
    options in its place; the command gets their values as one object.

    Args:
        names: Which of ``_read_options``'s parameters to add; all of them by default.

    Example::

        @app.command()
        @engine_options("model", "device")
        def show(options: EngineOptions) -> None:
            print(options.resolve_model(), options.config.device)
    """
    shared = [
        parameter
        for name, parameter in inspect.signature(_read_options, eval_str=True).parameters.items()
        if not names or name in names
    ]

    def decorate(command: Command) -> Command:
        parameters: list[inspect.Parameter] = []
        for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
            parameters += shared if name == "options" else [parameter]

        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            given = {parameter.name: values.pop(parameter.name) for parameter in shared}
            command(options=_read_options(**given), **values)

        # Typer reads both. Keyword-only parameters may have defaults in any order.
        with_options.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
        )
        with_options.__annotations__ = {
            parameter.name: parameter.annotation for parameter in parameters
        }
        return with_options

    return decorate


def on_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether the command line has the option; an environment variable is only a default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def engine_config_for(ctx: typer.Context, model: str, config: EngineConfig) -> EngineConfig:
    """Ignore PERSONAPLEX_ADAPTER for random weights; ``--adapter`` remains, and is refused."""
    from pipecat_personaplex.bench.models import RANDOM_MODELS

    if model in RANDOM_MODELS and not on_command_line(ctx, "adapter"):
        return replace(config, adapter="")
    return config


def integers(option: str, text: str, example: str) -> tuple[int, ...]:
    """Split the numbers of an option at their commas.

    Raises:
        ConfigError: They are not integers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} must be numbers like {example}, not {text!r}") from None


def voice_file(text: str | None) -> Path | None:
    """Return the file that ``--voice`` names; None if it names a preset, or is not given.

    Raises:
        VoiceError: The text looks like a path, but no such file exists.
    """
    if text is None:
        return None
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise VoiceError(
            f"--voice {text}: there is no such file, and the name of a preset has no folder or "
            "suffix"
        )
    return None


def preset_name(model: str, voice: str | None) -> str:
    """Look a preset up before gigabytes of weights are loaded.

    Args:
        model: The model, as ``EngineOptions.resolve_model`` returns it.
        voice: The preset; None for the first one.

    Raises:
        VoiceNotFound: The model has no such voice.
        CheckpointError: Its voices cannot be read.
    """
    from pipecat_personaplex.checkpoint.voices import VoiceLibrary

    presets = VoiceLibrary.of_model(model, progress=sys.stderr.isatty())
    return presets.get(voice or next(iter(presets.names), "")).name


def named_voice(text: str) -> tuple[str, Path]:
    """Split an ``--add-voice`` into the voice's name and its file.

    Raises:
        ConfigError: The text is not ``NAME=FILE``.
        VoiceError: The file does not exist.
    """
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ConfigError(f"--add-voice must be NAME=FILE, such as owen=owen.wav, not {text!r}")
    if not Path(file).is_file():
        raise VoiceError(f"--add-voice {text}: there is no file {file}")
    return name, Path(file)
