"""``personaplex offline``: run a conversation with a recorded caller."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipecat_personaplex.cli.call_script import SCRIPT_HELP, CallScript
from pipecat_personaplex.cli.files import check_outputs, whole_files
from pipecat_personaplex.cli.options import (
    EngineOptions,
    engine_options,
    preset_name,
    voice_file,
)
from pipecat_personaplex.cli.progress import progress_bar
from pipecat_personaplex.cli.saved_calls import CallEnd, ContinueCall, SaveCall, read_saved_call
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, UserError, VoiceError, VoiceNotFound
from pipecat_personaplex.words import words_of

if TYPE_CHECKING:
    from pipecat_personaplex.audio import Pcm
    from pipecat_personaplex.engine.converse import Conversation
    from pipecat_personaplex.protocol.call_file import SavedCall
    from pipecat_personaplex.session import Session

EXAMPLES = """[bold]Examples[/bold]

personaplex offline --voice NATF2 --input caller.wav --output agent.wav

personaplex offline --voice owen.wav --text-prompt "You enjoy having a good conversation." \
--input caller.flac --output agent.wav --output-text agent.json

personaplex offline --model ./personaplex-7b-v1 --greedy --dtype float32 --device cpu \
--voice NATM1 --input caller.wav --output agent.wav --save-tokens agent.npz

personaplex offline --input caller.wav --output agent.wav --output-text agent.json \
--script script.txt

personaplex offline --voice NATF2 --input first.wav --output agent1.wav --save-call anna.call

personaplex offline --continue anna.call --input second.wav --output agent2.wav

[bold]A script[/bold]

2.0  say "One moment, please."

3.5  hold 1.0

5.2  say "Your table is ready." now

6    hush

8    prompt "You work for a bakery and your name is Ann." voice=NATF2"""


@engine_options()
def offline(
    input_: Annotated[
        Path,
        typer.Option(
            "--input",
            metavar="FILE",
            help="The recording of the caller: wav, flac, mp3, m4a, mp4, webm or any other file "
            "that libsndfile or FFmpeg reads, at any sample rate, with any number of channels.",
            rich_help_panel="Conversation",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.wav",
            help="The file for the agent's audio: 16-bit, mono, 24 kHz, exactly as long as the "
            "recording.",
            rich_help_panel="Conversation",
        ),
    ],
    options: EngineOptions,
    voice: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="The agent's voice: the name of a preset, as [bold]personaplex voices list[/bold] "
            "shows them, or a file. A file is a recording of one speaker, about ten seconds, or a "
            "voice file (.pt or .safetensors).",
            show_default="the first preset",
            rich_help_panel="Conversation",
        ),
    ] = None,
    output_stereo: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.wav",
            help="Also write both speakers, in time with each other: the caller left, the agent "
            "right.",
            rich_help_panel="Conversation",
        ),
    ] = None,
    output_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Also write what the agent says: words with start and end in seconds, the text "
            "piece of each 80 ms frame, and the settings.",
            rich_help_panel="Conversation",
        ),
    ] = None,
    save_tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Also write all tokens as int64 arrays: text_tokens [T], agent_codes [8, T] and "
            "user_codes [8, T], with T frames of 80 ms.",
            rich_help_panel="Conversation",
        ),
    ] = None,
    text_prompt: Annotated[
        str | None,
        typer.Option(
            "--text-prompt",
            "--prompt",
            metavar="TEXT",
            help="Who the agent is and what it knows, in plain words; empty by default.",
            show_default=False,
            rich_help_panel="Conversation",
        ),
    ] = None,
    save_call: SaveCall = None,
    continue_: ContinueCall = None,
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.txt",
            help=SCRIPT_HELP,
            rich_help_panel="Conversation",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the sampling. The same seed, persona and recording give the same "
            "conversation.",
            rich_help_panel="Sampling",
        ),
    ] = SamplingParams.seed,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Always take the most likely token: set both temperatures to 0.",
            rich_help_panel="Sampling",
        ),
    ] = False,
    temperature_audio: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature of the agent's audio codes, from 0 (greedy) to 10.",
            show_default=str(SamplingParams.temperature_audio),
            rich_help_panel="Sampling",
        ),
    ] = None,
    temperature_text: Annotated[
        float | None,
        typer.Option(
            help="Sampling temperature of the agent's text tokens, from 0 (greedy) to 10.",
            show_default=str(SamplingParams.temperature_text),
            rich_help_panel="Sampling",
        ),
    ] = None,
    top_k_audio: Annotated[
        int,
        typer.Option(
            help="Sample each audio code from this many most likely candidates.",
            rich_help_panel="Sampling",
        ),
    ] = SamplingParams.top_k_audio,
    top_k_text: Annotated[
        int,
        typer.Option(
            help="Sample each text token from this many most likely candidates.",
            rich_help_panel="Sampling",
        ),
    ] = SamplingParams.top_k_text,
) -> None:
    """Run a conversation with a recorded caller, as fast as the machine can.

    The agent hears the recording in frames of 80 ms, as it would hear a call, and speaks whenever
    it decides to. The output holds the agent alone, aligned in time with the recording.
    """
    temperatures = _temperatures(
        greedy, temperature_audio=temperature_audio, temperature_text=temperature_text
    )
    sampling = SamplingParams(
        seed=seed, top_k_audio=top_k_audio, top_k_text=top_k_text, **temperatures
    )
    # One conversation needs one slot, and nothing reuses its prompt.
    config = dataclasses.replace(options.config, max_sessions=1, prefix_cache_bytes=0)
    for option, path in {"--output": output, "--output-stereo": output_stereo}.items():
        if path is not None and path.suffix.lower() != ".wav":
            raise UserError(f"{option} {path}: the output is WAV; choose a name that ends in .wav")
    recorded = voice_file(voice)
    outputs = {
        "--output": output,
        "--output-stereo": output_stereo,
        "--output-text": output_text,
        "--save-tokens": save_tokens,
        "--save-call": save_call,
    }
    requested = {option: path for option, path in outputs.items() if path is not None}
    inputs = [path for path in (input_, recorded, script, continue_) if path is not None]
    check_outputs(requested, inputs)
    call_script = None if script is None else CallScript(script)
    call = None if continue_ is None else read_saved_call(continue_)
    if text_prompt is None:
        text_prompt = "" if call is None else call.persona.text_prompt

    import numpy as np

    from pipecat_personaplex.audio_files import read_audio, write_wav
    from pipecat_personaplex.engine.engine import Engine

    pcm = read_audio(input_)
    if call_script is not None:
        call_script.check_times(_frames(pcm))
    model = options.resolve_model()
    if recorded is not None:
        name = recorded.stem
    elif voice is None and call is not None:
        name = _voice_of(call, model)
    else:
        name = preset_name(model, voice)
    persona = Persona(name, text_prompt)
    engine = Engine.load(model, config, progress=sys.stderr.isatty())
    if recorded is not None:
        engine.add_voice(name, recorded)
    end = CallEnd(model)
    actions: dict[int, Callable[[Session], object]] = {_frames(pcm): end.note}
    if call_script is not None:
        actions |= call_script.actions(persona)
    started = time.monotonic()
    with engine, progress_bar("conversation") as progress:
        conversation = engine.converse(
            persona,
            pcm,
            sampling,
            on_frame=lambda frame: progress(frame.index + 1, _frames(pcm)),
            actions=actions,
            history=None if call is None else call.history,
        )
    elapsed = time.monotonic() - started

    with whole_files(list(requested.values())) as temporary:
        paths = dict(zip(requested, temporary, strict=True))
        write_wav(paths["--output"], conversation.pcm)
        if "--output-stereo" in paths:
            write_wav(paths["--output-stereo"], np.stack([pcm, conversation.pcm], axis=1))
        if "--output-text" in paths:
            settings: dict[str, Any] = {
                "model": model,
                "voice": voice or name,
                "text_prompt": text_prompt,
            }
            settings |= dataclasses.asdict(sampling)
            if call_script is not None:
                settings["script"] = call_script.results()
            _write_text(paths["--output-text"], conversation, settings)
        if "--save-tokens" in paths:
            _write_tokens(paths["--save-tokens"], conversation)
        if "--save-call" in paths:
            end.write(paths["--save-call"])
    seconds = len(pcm) / SAMPLE_RATE
    typer.echo(f"{output}: {seconds:.2f} s, computed in {elapsed:.2f} s")


def _temperatures(greedy: bool, **given: float | None) -> dict[str, Any]:
    """Return the temperatures that differ from the defaults.

    Raises:
        ConfigError: A temperature was given together with ``--greedy``.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    if not greedy:
        return chosen
    for name in chosen:
        option = "--" + name.replace("_", "-")
        raise ConfigError(f"--greedy sets a temperature of 0; give either --greedy or {option}")
    return dict.fromkeys(given, 0.0)


def _voice_of(call: SavedCall, model: str) -> str:
    """The voice of the call of ``--continue``: a preset's name, never a path to open.

    Raises:
        VoiceError: The model has no such voice.
    """
    try:
        return preset_name(model, call.persona.voice)
    except VoiceNotFound as error:
        raise VoiceError(
            f"the call of --continue has another voice: {error}; if it was a file, give it again "
            "with --voice FILE"
        ) from None


def _frames(pcm: Pcm) -> int:
    """Frames of a recording; the last one may be incomplete."""
    return -(-len(pcm) // FRAME_SAMPLES)


def _write_text(path: Path, conversation: Conversation, settings: dict[str, Any]) -> None:
    pieces = [frame.text for frame in conversation.frames]
    content = settings | {
        "frames": len(pieces),
        "frame_seconds": FRAME_SECONDS,
        "words": [dataclasses.asdict(word) for word in words_of(pieces)],
        "pieces": pieces,
    }
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    # A file name that is not valid Unicode is written as JSON escapes.
    path.write_bytes(text.encode("utf-8", "backslashreplace"))


def _write_tokens(path: Path, conversation: Conversation) -> None:
    import numpy as np

    frames = conversation.frames
    # reshape: a recording shorter than one sample at 24 kHz has no frames, which must give [0, 8].
    agent = np.array([frame.agent_codes for frame in frames], np.int64).reshape(-1, CODEBOOKS)
    user = np.array([frame.user_codes for frame in frames], np.int64).reshape(-1, CODEBOOKS)
    text = np.array([frame.text_token for frame in frames], np.int64)
    # Pass a file object: given a path, numpy would append a suffix to the temporary name.
    with path.open("wb") as file:
        np.savez_compressed(file, text_tokens=text, agent_codes=agent.T, user_codes=user.T)
