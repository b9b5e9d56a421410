"""Measures how long nano keeps its persona: ten-minute calls with and without ``keep_persona``.

Run ``python -m training.nano.long_calls``. Every minute of a call, its caller asks for the agent's
name and asks four other questions, then is silent. The first minutes, in which the whole call is in
the model's window, show what nano achieves without any replay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.engine.engine import Engine
from training.nano import script
from training.nano.answers import agent_text_between, is_right, names_in
from training.nano.calls import CallerTurn, TestCall, _CallerTrack
from training.nano.clips import Background
from training.nano.voices import AGENT_VOICES, held_out_voices

_CONCURRENT_CALLS = 12
_MINUTE = 60.0
# From the caller's last word to the next turn: long enough for any answer.
_ANSWER_SECONDS = 4.8
_OTHER_QUESTIONS = 4


@dataclass
class Minute:
    """What the agents of all calls answered in one minute of their calls.

    Attributes:
        names: Questions for the agent's name.
        name_right: Answers with the agent's name.
        name_wrong: Answers with another name.
        others: Other questions.
        other_right: Right answers to them, whatever name is in them.
    """

    names: int = 0
    name_right: int = 0
    name_wrong: int = 0
    others: int = 0
    other_right: int = 0

    def __add__(self, other: Minute) -> Minute:
        return Minute(**{key: value + vars(other)[key] for key, value in vars(self).items()})


def long_call(index: int, minutes: int) -> TestCall:
    """A call of a caller whose voice, wordings and noise were not in the training data."""
    random = np.random.default_rng([91, index])
    character = script.sample_character(random)
    while character.name is None:
        character = script.sample_character(random)
    manners = held_out_voices()
    track = _CallerTrack(random, manners[index % len(manners)], [])
    social = ("name", "hello", "bye", "thanks")
    others = [intent for intent in script.intents(character.role) if intent not in social]
    turns: list[CallerTurn] = []
    for minute in range(minutes):
        track.now = max(track.now, minute * _MINUTE + 1.0)
        intents = ["name", *random.choice(others, _OTHER_QUESTIONS, replace=False)]
        turns += [track.say(str(intent), _ANSWER_SECONDS) for intent in random.permutation(intents)]
    track.now = max(track.now, minutes * _MINUTE)
    pcm = track.record(Background.sample(random, held_out=True))
    return TestCall(character, list(AGENT_VOICES)[index % 2], pcm, tuple(turns))


def run_calls(calls: Sequence[TestCall], keep_persona: bool) -> list[Minute]:
    """Run the calls side by side; the results by minute."""
    config = EngineConfig(device="cpu", max_sessions=_CONCURRENT_CALLS, keep_persona=keep_persona)

    def run(index: int) -> dict[int, Minute]:
        # The audio of a long call is large: only its results outlive this function.
        persona = Persona(calls[index].voice, calls[index].character.prompt)
        talk = engine.converse(persona, calls[index].pcm, SamplingParams(seed=index))
        return _judge_call(engine, calls[index], talk)

    with Engine.load("nano", config) as engine, ThreadPoolExecutor(_CONCURRENT_CALLS) as pool:
        results = list(pool.map(run, range(len(calls))))
    minutes = sorted(set().union(*results))
    return [sum((result[minute] for result in results), Minute()) for minute in minutes]


def _judge_call(engine: Engine, call: TestCall, talk: Conversation) -> dict[int, Minute]:
    minutes: dict[int, Minute] = {}
    for turn in call.turns:
        end = turn.end + _ANSWER_SECONDS  # the next turn is not earlier
        text = agent_text_between(engine, talk, turn.end - 0.3, end)
        minute = int(turn.start // _MINUTE)
        minutes[minute] = minutes.get(minute, Minute()) + judge(call.character, turn, text)
    return minutes


def judge(character: script.Character, turn: CallerTurn, text: str) -> Minute:
    """The result of one answer."""
    if turn.intent == "name":
        names = names_in(text)
        right = str(character.name) in names
        return Minute(names=1, name_right=right, name_wrong=bool(names) and not right)
    return Minute(others=1, other_right=is_right(character, turn.intent, text))


def draw(path: Path, results: dict[str, list[Minute]]) -> None:
    """Draw the right answers by minute, in percent, into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")  # files, no windows
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
    for label, minutes in results.items():
        clock = np.arange(1, len(minutes) + 1)
        names = [100 * minute.name_right / minute.names for minute in minutes]
        others = [100 * minute.other_right / minute.others for minute in minutes]
        axes[0].plot(clock, names, marker="o", markersize=3, label=label)
        axes[1].plot(clock, others, marker="o", markersize=3, label=label)
    axes[0].set(title="the agent's name", ylabel="right answers, %", ylim=(0, 104))
    axes[1].set(title="other questions")
    for axis in axes:
        axis.set(xlabel="minute of the call", xticks=clock)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower left")
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main(
    calls: Annotated[int, typer.Option(help="Number of calls.", min=1)] = 24,
    minutes: Annotated[int, typer.Option(help="Length of each call.", min=1)] = 10,
    picture: Annotated[Path | None, typer.Option(help="PNG file for the curves.")] = None,
) -> None:
    """Measure how long nano keeps its persona; prints a line of JSON for each minute."""
    material = [long_call(index, minutes) for index in range(calls)]
    results = {}
    for label, keep in (("keep_persona", True), ("without", False)):
        results[label] = run_calls(material, keep)
        for minute, result in enumerate(results[label], 1):
            print(json.dumps({"calls": label, "minute": minute, **vars(result)}), flush=True)
    if picture is not None:
        draw(picture, results)


if __name__ == "__main__":
    typer.run(main)
