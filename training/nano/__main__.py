"""The commands of the recipe, one for each phase."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer

from training.nano.memory import keep_memory
from training.nano.progress import NotSaid, StateMissing


class _Recipe(typer.core.TyperGroup):
    """Commands that say in one line which command must run first."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (StateMissing, FileExistsError, NotSaid) as error:
            raise typer.BadParameter(str(error)) from error


app = typer.Typer(cls=_Recipe, no_args_is_help=True, add_completion=False, help=__doc__)
Folder = Annotated[Path, typer.Option(help="Folder for training states and logs.")]
Checkpoint = Annotated[Path, typer.Option(help="Folder of the checkpoint.")]
_NANO = Path("pipecat_personaplex/nano")


@app.callback()
def main() -> None:
    """Train, export and evaluate the nano checkpoint."""
    keep_memory()
    # Silence produces denormal numbers: with them, a CPU encodes the agent's sentences in ten times
    # the time.
    torch.set_flush_denormal(True)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _check_part(part: int, parts: int) -> None:
    if part >= parts:
        raise typer.BadParameter(f"--part counts from 0: with --parts {parts}, up to {parts - 1}")


@app.command()
def codec(
    phase: Annotated[str, typer.Argument(help="autoencoder or quantizer.")],
    minutes: Annotated[float, typer.Option(help="Training time.")],
    folder: Folder = Path("runs/nano"),
) -> None:
    """Train one phase of the codec; resumes a run that was stopped."""
    from training.nano.codec import CodecRun, Phase, train_codec

    train_codec(folder, CodecRun(cast(Phase, phase), minutes), _device())


@app.command()
def agent(
    folder: Folder = Path("runs/nano"),
    others: Annotated[
        int, typer.Option(min=10, help="Sentences of each voice that are not in the script.")
    ] = 600,
    part: Annotated[int, typer.Option(min=0, help="Number of this process, from 0.")] = 0,
    parts: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
) -> None:
    """Synthesise what the agent says, with Kokoro, for `decoder` and `clips`."""
    from training.nano.agent_speech import record_agent

    _check_part(part, parts)
    record_agent(folder, others, part, parts)


@app.command()
def decoder(
    minutes: Annotated[float, typer.Option(help="Training time.")],
    folder: Folder = Path("runs/nano"),
) -> None:
    """Train decoder and own encoder of the agent's voices; needs `codec quantizer`, `agent`."""
    from training.nano.decoder import DecoderRun, train_decoder

    train_decoder(folder, DecoderRun(minutes), _device())


@app.command()
def adopt(
    model: Checkpoint = _NANO,
    folder: Folder = Path("runs/nano"),
) -> None:
    """Create training states from a finished checkpoint, for `decoder` and `lm` to continue."""
    from training.nano.adopt import adopt as create_states

    create_states(model, folder)


@app.command()
def rehearse(
    model: Checkpoint = _NANO,
    folder: Folder = Path("runs/nano"),
) -> None:
    """Have a checkpoint say all that the agent says; takes the place of `agent` and `decoder`."""
    from training.nano.rehearse import rehearse as speak_again

    speak_again(model, folder)


@app.command()
def tokenizer(folder: Folder = Path("runs/nano")) -> None:
    """Train the tokenizer anew after a change of the script; the language model keeps its rows."""
    from training.nano.tokenizer import replace_tokenizer

    replace_tokenizer(folder)


@app.command()
def record(
    folder: Folder = Path("runs/nano"),
    turns: Annotated[int, typer.Option(help="Turns in all; run again with more to add some.")] = (
        4500
    ),
    part: Annotated[int, typer.Option(min=0, help="Number of this process, from 0.")] = 0,
    parts: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
) -> None:
    """Synthesise callers' turns with Kokoro, for `speak`."""
    from training.nano.recordings import record as synthesise

    _check_part(part, parts)
    synthesise(folder, turns, part, parts)


@app.command()
def speak(
    folder: Folder = Path("runs/nano"),
    callers: Annotated[
        int, typer.Option(help="Number of callers; run again with more to add some.")
    ] = 3400,
    turns: Annotated[int, typer.Option(help="Turns that each caller speaks.")] = 12,
    seed: Annotated[int, typer.Option(help="Random seed of voices and wordings.")] = 0,
    part: Annotated[int, typer.Option(min=0, help="Number of this process, from 0.")] = 0,
    parts: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
    synthesiser: Annotated[
        list[str] | None,
        typer.Option(help="espeak, kokoro, pico or flite; may be repeated; all by default."),
    ] = None,
) -> None:
    """Synthesise callers' turns with all synthesisers, for `encoder` and `clips`."""
    from training.nano.caller_turns import speak as synthesise
    from training.nano.people import NoCallers

    _check_part(part, parts)
    try:
        for path in synthesise(
            folder,
            callers,
            turns,
            part=part,
            parts=parts,
            synthesisers=synthesiser or (),
            seed=seed,
        ):
            typer.echo(f"{path} written")
    except NoCallers as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def encoder(
    minutes: Annotated[float, typer.Option(help="Training time.")],
    folder: Folder = Path("runs/nano"),
) -> None:
    """Train the codec's encoder on callers' words; needs the turns of `speak`."""
    from training.nano.encoder import EncoderRun, train_encoder

    train_encoder(folder, EncoderRun(minutes), _device())


@app.command()
def clips(
    folder: Folder = Path("runs/nano"),
    seed: Annotated[int, typer.Option(help="Random seed of microphones and noises.")] = 0,
    microphones: Annotated[
        int, typer.Option(min=1, help="Microphones through which each caller speaks all turns.")
    ] = 2,
    part: Annotated[int, typer.Option(min=0, help="Number of this process, from 0.")] = 0,
    parts: Annotated[int, typer.Option(min=1, help="Processes that share the work.")] = 1,
) -> None:
    """Encode the agent's sentences and the callers of `speak`; train a missing tokenizer first.

    Run again after `speak` to encode the callers that it has added.
    """
    from training.nano.clips import add_callers, new_pool
    from training.nano.codec import load_finished
    from training.nano.tokenizer import train_tokenizer

    _check_part(part, parts)
    if part == 0 and not (folder / "tokenizer.model").exists():
        train_tokenizer(folder / "tokenizer.model")
    mimi = load_finished(folder, _device())
    if part == 0 and not (folder / "pool.pt").exists():
        new_pool(folder, mimi, _device()).save(folder)
    for path in add_callers(
        folder, mimi, _device(), part=part, parts=parts, seed=seed, microphones=microphones
    ):
        typer.echo(f"{path} written")


@app.command()
def lm(
    minutes: Annotated[float, typer.Option(help="Training time.")],
    folder: Folder = Path("runs/nano"),
    batch: Annotated[int, typer.Option(help="Dialogues in a step of each process.")] = 8,
    length: Annotated[
        int, typer.Option(help="Frames of a dialogue, 12.5 a second.", min=200, max=1400)
    ] = 380,
    rate: Annotated[
        float, typer.Option(help="Highest learning rate; after `adopt`, a third is enough.")
    ] = 1.5e-3,
    speech_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the agent's audible frames that train the depth transformer; "
            "after `adopt`, 0.15 is enough.",
        ),
    ] = 0.35,
    listening_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.9,
            help="Share of the first batch that holds callers' speech without answers, where only "
            "the loss of the callers' words counts; falls to 0 at the end.",
        ),
    ] = 0.0,
    speaking_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of a batch in which the agent says given sentences without a caller.",
        ),
    ] = 0.25,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile the forward passes; needs a C++ compiler."),
    ] = False,
) -> None:
    """Train the language model; resumes a run that was stopped."""
    from training.nano.lm import LMRun, train_lm

    run = LMRun(
        minutes,
        batch=batch,
        length=length,
        peak_rate=rate,
        speech_share=speech_share,
        listening_share=listening_share,
        speaking_share=speaking_share,
        compile=compile,
    )
    train_lm(folder, run, _device())


@app.command()
def export(
    folder: Folder = Path("runs/nano"),
    output: Checkpoint = _NANO,
) -> None:
    """Write the checkpoint in the layout of NVIDIA's release."""
    import sentencepiece

    from training.nano.codec import load_finished
    from training.nano.copying import place_unseen_names
    from training.nano.export import write_models, write_voices
    from training.nano.lm import load_lm, model_config
    from training.nano.pool import Pool

    config = model_config(Pool.load(folder))
    mimi = load_finished(folder, torch.device("cpu"))
    lm = load_lm(folder / "lm.pt", config)
    tokenizer = folder / "tokenizer.model"
    place_unseen_names(lm, sentencepiece.SentencePieceProcessor(str(tokenizer)))
    write_models(output, config, lm, mimi, tokenizer)
    write_voices(output)


@app.command()
def evaluate(
    model: Checkpoint = _NANO,
    calls: Annotated[int, typer.Option(help="Calls of each kind and seed.")] = 16,
    silence: Annotated[
        bool, typer.Option(help="Also run a call with five minutes of silence.")
    ] = True,
    behaviour: Annotated[bool, typer.Option(help="Measure answers, turn-taking and speed.")] = True,
    speech: Annotated[
        bool, typer.Option(help="Measure word error rates of a speech recogniser.")
    ] = True,
    voices: Annotated[
        bool, typer.Option(help="Measure right answers by voice, microphone and line.")
    ] = True,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
) -> None:
    """Run calls with held-out voices, wordings and noises; print metrics as JSON lines."""
    from training.nano.evaluate import evaluate as measure
    from training.nano.hearing import hearing
    from training.nano.word_errors import word_errors

    if behaviour:
        for part, metrics in measure(model, calls, silence, range(seeds)).items():
            typer.echo(json.dumps({"part": part} | {k: round(v, 3) for k, v in metrics.items()}))
    if speech:
        typer.echo(
            json.dumps({k: round(v, 3) for k, v in word_errors(model, range(seeds)).items()})
        )
    if voices:
        hearing(model, calls, range(seeds), on_row=lambda row: typer.echo(json.dumps(row)))


@app.command()
def samples(
    model: Checkpoint = _NANO,
    output: Annotated[Path, typer.Option(help="Folder for recordings and spectrograms.")] = (
        _NANO / "samples"
    ),
) -> None:
    """Write recordings of calls, and spectrograms."""
    from training.nano.samples import write_samples

    write_samples(model, output)


if __name__ == "__main__":
    app()
