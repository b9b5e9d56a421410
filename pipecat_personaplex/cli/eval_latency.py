"""``personaplex eval latency``: measure a bot or a server from outside."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, EngineUnreachable, InvalidAudio, UserError

if TYPE_CHECKING:
    from pipecat_personaplex.audio import Pcm
    from pipecat_personaplex.eval.latency.measure import Target
    from pipecat_personaplex.eval.latency.probe import Latencies

EXAMPLES = """[bold]Examples[/bold]

personaplex eval latency bot

personaplex eval latency ws://localhost:7860/ws --count 20

personaplex eval latency ws://localhost:8998 --prompt "You are a wise and friendly teacher."

personaplex eval latency http://localhost:7860 --input question.wav --floor http://localhost:7861"""


def latency(
    target: Annotated[
        str,
        typer.Argument(
            metavar="bot|URL",
            help="bot is http://localhost:7860. http:// is a bot over WebRTC, ws:// a server of "
            "personaplex serve, and ws://.../ws a bot on Twilio's telephone line.",
        ),
    ],
    transport: Annotated[
        Literal["webrtc", "twilio", "server"] | None,
        typer.Option(help="How to call the target.", show_default="by its address"),
    ] = None,
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="A recording of what the caller says.",
            show_default="a question of nano's recordings in a checkout, else one by espeak-ng",
        ),
    ] = None,
    tone: Annotated[
        bool,
        typer.Option(
            "--tone", help="The target is an echo: send tones, and count from their start."
        ),
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Number of sounds that are sent.")] = 10,
    floor: Annotated[
        str,
        typer.Option(
            metavar="local|none|URL",
            help="What to subtract: the round trip of an echo over the same transport, on this "
            "machine or at an address.",
        ),
    ] = "local",
    prompt: Annotated[str, typer.Option(help="For a server: the agent's text prompt.")] = "",
    voice: Annotated[
        str, typer.Option(help="For a server: the agent's voice.", show_default="the first")
    ] = "",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="PERSONAPLEX_API_KEY", help="For a server or a bot that requires a key."
        ),
    ] = None,
) -> None:
    """Measure mouth-to-ear latency: sound in, sound out, on one clock.

    Latency counts from the end of the caller's words to the first sound of the answer; with tones,
    from the start of a tone to the start of its echo. The last line is JSON.
    """
    from pipecat_personaplex.eval.latency.measure import Target, measure, measure_floor

    goal = replace(Target.parse(target, transport), prompt=prompt, voice=voice, api_key=api_key)
    _check(goal, tone, input_)
    echo = None if floor in ("local", "none") else Target.parse(floor, goal.transport)
    name, sound = ("tone", None) if tone else _question(input_)
    base = None if floor == "none" else asyncio.run(measure_floor(goal, echo, count))
    if base is not None:
        typer.echo(_line(f"floor of {goal.transport}, an echo", base))
        if not base.seconds:
            raise EngineUnreachable("the echo of --floor returns nothing")
    found = asyncio.run(measure(goal, sound, count))
    typer.echo(_line(f"{goal.url}, {goal.transport}", found))
    if not found.seconds:
        raise EngineUnreachable(
            f"{goal.url} never answered; what it hears may need another --input"
        )
    if base is not None:
        typer.echo(f"without the floor: median {(found.median - base.median) * 1e3:.0f} ms")
    report = {
        "target": goal.url,
        "transport": goal.transport,
        "sound": name,
        "seconds": [round(each, 4) for each in found.seconds],
        "unanswered": found.unanswered,
        "median_s": round(found.median, 4),
        "floor_median_s": None if base is None else round(base.median, 4),
    }
    typer.echo(json.dumps(report))


def _check(target: Target, tone: bool, input_: Path | None) -> None:
    """Refuse an option that another one makes useless.

    Raises:
        ConfigError: There is one.
    """
    if tone and input_ is not None:
        raise ConfigError("--tone sends tones, and --input a recording; leave out one of them")
    for option, value in (("--prompt", target.prompt), ("--voice", target.voice)):
        if value and target.transport != "server":
            raise ConfigError(
                f"{option} is for a server, and {target.url} is called over {target.transport}; "
                f"leave out {option}: a bot has its own"
            )


def _question(path: Path | None) -> tuple[str, Pcm]:
    """What the caller says, and where it is from.

    Raises:
        InvalidAudio: The recording cannot be read, or contains no speech.
        UserError: No recording is given, and there is no question without one.
    """
    from pipecat_personaplex.audio_files import read_audio
    from pipecat_personaplex.eval.suites.nano_calls import caller_voices
    from pipecat_personaplex.eval.voice_activity import caller_spans

    if path is not None:
        pcm = read_audio(path)
        spans = caller_spans(pcm)
        if not spans:
            raise InvalidAudio(f"audio file {path} contains no speech that an agent could answer")
        # The time counts from the last word.
        return str(path), pcm[: round(spans[-1].end * SAMPLE_RATE)]
    try:
        voices = caller_voices(bundled=True)
    except UserError as error:
        raise UserError(f"{error}; or give a question with --input FILE") from None
    return f"a question from {voices.name}", voices.scene(0).questions[1].pcm


def _line(name: str, found: Latencies) -> str:
    if not found.seconds:
        return f"{name}: no answer to {found.unanswered} sounds"
    missed = f", {found.unanswered} unanswered" if found.unanswered else ""
    return (
        f"{name}: median {found.median * 1e3:.0f} ms, 95th percentile "
        f"{found.percentile(95) * 1e3:.0f} ms, {len(found.seconds)} times{missed}"
    )
