"""``personaplex offline``: a conversation with a recorded caller."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.cli.options import (
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
from pipecat_personaplex.cli.progress import progress_bar
from pipecat_personaplex.config import AUTO_MODEL, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, UserError, VoiceError
from pipecat_personaplex.words import words_of

if TYPE_CHECKING:
    from pipecat_personaplex.audio import Pcm
    from pipecat_personaplex.engine.converse import Conversation
    from pipecat_personaplex.engine.engine import Engine

EXAMPLES = """[bold]Examples[/bold]

personaplex offline --voice NATF2 --input caller.wav --output agent.wav

personaplex offline --voice owen.wav --text-prompt "You enjoy having a good conversation." \
--input caller.flac --output agent.wav --output-text agent.json

personaplex offline --model ./personaplex-7b-v1 --greedy --dtype float32 --device cpu \
--voice NATM1 --input caller.wav --output agent.wav --save-tokens agent.npz"""


def offline(
    input_: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="FILE",
            help="The caller: any audio file that libsndfile reads, of any rate and channels.",
            rich_help_panel="Conversation",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.wav",
            help="The agent: 16-bit mono 24 kHz, exactly as long as the caller.",
            rich_help_panel="Conversation",
        ),
    ],
    voice: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A preset's name, as [bold]personaplex voices list[/bold] shows them, or a file: "
            "a recording of one speaker, about ten seconds, or a .pt or .safetensors voice.",
            show_default="the first preset",
            rich_help_panel="Conversation",
        ),
    ] = None,
    output_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="What the agent said: words with start and end in seconds, the piece of each "
            "80 ms frame, and the settings.",
            rich_help_panel="Conversation",
        ),
    ] = None,
    save_tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="All tokens, as int64: text_tokens (T), agent_codes and user_codes (8, T).",
            rich_help_panel="Conversation",
        ),
    ] = None,
    text_prompt: Annotated[
        str,
        typer.Option(
            "--text-prompt",
            "--prompt",
            metavar="TEXT",
            help="Who the agent is and what it knows, in plain words; none by default.",
            show_default=False,
            rich_help_panel="Conversation",
        ),
    ] = "",
    model: Model = AUTO_MODEL,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    kv_dtype: KVDtype = "auto",
    context: Context = 0,
    threads: Threads = 0,
    cuda_graphs: CudaGraphs = True,
    seed: Annotated[
        int,
        typer.Option(
            help="The same seed, persona and audio give the same conversation.",
            rich_help_panel="Sampling",
        ),
    ] = SamplingParams.seed,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Always take the likeliest token: both temperatures at 0.",
            rich_help_panel="Sampling",
        ),
    ] = False,
    temperature_audio: Annotated[
        float | None,
        typer.Option(
            help="Of the agent's audio codes, from 0 (greedy) to 10.",
            show_default=str(SamplingParams.temperature_audio),
            rich_help_panel="Sampling",
        ),
    ] = None,
    temperature_text: Annotated[
        float | None,
        typer.Option(
            help="Of the agent's text, from 0 (greedy) to 10.",
            show_default=str(SamplingParams.temperature_text),
            rich_help_panel="Sampling",
        ),
    ] = None,
    top_k_audio: Annotated[
        int,
        typer.Option(help="Candidates kept for each audio code.", rich_help_panel="Sampling"),
    ] = SamplingParams.top_k_audio,
    top_k_text: Annotated[
        int,
        typer.Option(help="Candidates kept for each text token.", rich_help_panel="Sampling"),
    ] = SamplingParams.top_k_text,
) -> None:
    """Let the agent answer a recorded caller, as fast as the machine goes.

    The agent hears the recording as it would a call, 80 ms at a time, and speaks when it chooses
    to. What is written is the agent alone, in time with the recording.
    """
    temperatures = _temperatures(
        greedy, temperature_audio=temperature_audio, temperature_text=temperature_text
    )
    sampling = SamplingParams(
        seed=seed, top_k_audio=top_k_audio, top_k_text=top_k_text, **temperatures
    )
    # One conversation: one slot, and no prompt to keep for a next caller.
    config = EngineConfig(
        device=device,
        dtype=dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        context=context,
        max_sessions=1,
        prefix_cache_bytes=0,
        cpu_threads=threads,
        cuda_graphs=cuda_graphs,
    )
    if output.suffix.lower() != ".wav":
        raise UserError(f"--output {output}: WAV is what is written, so let the name end in .wav")
    voice_file = None if voice is None else _voice_file(voice)
    outputs = {"--output": output, "--output-text": output_text, "--save-tokens": save_tokens}
    chosen = {option: path for option, path in outputs.items() if path is not None}
    check_outputs(chosen, [input_] if voice_file is None else [input_, voice_file])

    from pipecat_personaplex.audio import read_audio, write_wav
    from pipecat_personaplex.checkpoint.voices import VoiceLibrary
    from pipecat_personaplex.engine.engine import Engine

    pcm = read_audio(input_)
    model = chosen_model(model, device)
    shown = sys.stderr.isatty()
    if voice_file is None:
        presets = VoiceLibrary.of_model(model, progress=shown)  # before gigabytes are loaded
        name = presets.get(voice or next(iter(presets.names), "")).name
    else:
        name = voice_file.stem
    engine = Engine.load(model, config, progress=shown)
    if voice_file is not None:
        engine.add_voice(name, voice_file)
    persona = Persona(name, text_prompt)
    started = time.monotonic()
    with engine:
        said = _converse(engine, persona, pcm, sampling)
    took = time.monotonic() - started

    with whole_files(list(chosen.values())) as temporary:
        paths = dict(zip(chosen, temporary, strict=True))
        write_wav(paths["--output"], said.pcm)
        if "--output-text" in paths:
            about = {"model": model, "voice": voice or name, "text_prompt": text_prompt}
            _write_text(paths["--output-text"], said, about | dataclasses.asdict(sampling))
        if "--save-tokens" in paths:
            _write_tokens(paths["--save-tokens"], said)
    seconds = len(pcm) / SAMPLE_RATE
    typer.echo(f"{output}: {seconds:.2f} s, computed in {took:.2f} s")


def _temperatures(greedy: bool, **given: float | None) -> dict[str, Any]:
    """Temperatures that differ from the defaults.

    Raises:
        ConfigError: One was given beside ``--greedy``.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if not greedy:
        return chosen
    for name in chosen:
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"--greedy means a temperature of 0; leave out it or {option}")
    return dict.fromkeys(given, 0.0)


def _voice_file(voice: str) -> Path | None:
    """The file that ``--voice`` names, or None where it is a preset's name."""
    path = Path(voice)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise VoiceError(
            f"--voice {voice}: there is no such file, and a preset's name has no folder or suffix"
        )
    return None


def _converse(engine: Engine, persona: Persona, pcm: Pcm, sampling: SamplingParams) -> Conversation:
    """Hold the conversation, with a progress bar where someone can see it."""
    frames = -(-len(pcm) // FRAME_SAMPLES)
    with progress_bar("conversation") as progress:
        return engine.converse(
            persona, pcm, sampling, on_frame=lambda frame: progress(frame.index + 1, frames)
        )


def _write_text(path: Path, said: Conversation, about: dict[str, Any]) -> None:
    pieces = [frame.text for frame in said.frames]
    content = about | {
        "frames": len(pieces),
        "frame_seconds": FRAME_SECONDS,
        "words": [dataclasses.asdict(word) for word in words_of(pieces)],
        "pieces": pieces,
    }
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_tokens(path: Path, said: Conversation) -> None:
    import numpy as np

    # Also [8, 0] of a recording too short for a single sample at 24 kHz.
    agent = np.array([frame.agent_codes for frame in said.frames], np.int64).reshape(-1, CODEBOOKS)
    user = np.array([frame.user_codes for frame in said.frames], np.int64).reshape(-1, CODEBOOKS)
    text = np.array([frame.text_token for frame in said.frames], np.int64)
    # By handle: to a path, numpy would add a suffix.
    with path.open("wb") as file:
        np.savez_compressed(file, text_tokens=text, agent_codes=agent.T, user_codes=user.T)
