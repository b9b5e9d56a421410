"""Calls for evaluation, with held-out voices, wordings and noises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano import script, wordings
from training.nano.clips import Background
from training.nano.codec_data import add_at
from training.nano.espeak import Pcm
from training.nano.microphone import Microphone
from training.nano.names import HELD_OUT_NAMES, NAMES
from training.nano.noise import rms
from training.nano.turns import Person, speak_turn, tell_story
from training.nano.voices import AGENT_VOICES, held_out_voices

_BEFORE_SECONDS = 1.0
# From the caller's last word to the next turn: long enough for any answer.
_ANSWER_SECONDS = 4.8
_TURNS = 4
_OF_THE_PROMPT = [
    *("name", "abilities", "menu", "in_classic", "in_spicy"),
    *("price_classic", "price_spicy", "hours", "location"),
]


@dataclass(frozen=True)
class CallerTurn:
    """A turn of the caller; times are in seconds from the start of the call.

    Attributes:
        intent: The intent of the turn.
        start: Start of the first word.
        end: End of the last word.
        pause: Start and end of a pause inside the turn; None without one.
        interrupts: Whether the turn starts during the agent's previous answer.
        story_end: End of a story before the question; None without one.
    """

    intent: str
    start: float
    end: float
    pause: tuple[float, float] | None = None
    interrupts: bool = False
    story_end: float | None = None


@dataclass(frozen=True)
class TestCall:
    """A call to run through the model.

    Attributes:
        character: The agent's role and name.
        voice: The agent's voice.
        pcm: The caller's audio, float32 mono 24 kHz.
        turns: The caller's turns, in order.
    """

    character: script.Character
    voice: str
    pcm: Pcm
    turns: tuple[CallerTurn, ...]


@dataclass
class _CallerTrack:
    """The audio of a caller under construction."""

    random: np.random.Generator
    person: Person
    parts: list[tuple[float, Pcm]]
    now: float = _BEFORE_SECONDS

    def say(
        self,
        intent: str,
        wait: float,
        pause: bool = False,
        interrupts: bool = False,
        story: bool = False,
    ) -> CallerTurn:
        text = str(self.random.choice(wordings.wordings(intent, held_out=True)))
        if story:
            first = str(self.random.choice(wordings.stories(held_out=True)))
            turn = tell_story(first, text, self.person, self.random)
        else:
            turn = speak_turn(text, self.person, self.random, pause)
        # Up to one frame of random delay: words may start anywhere inside a frame.
        start = self.now + self.random.uniform(0, 0.08)
        self.parts.append((start, turn.pcm))
        end = start + len(turn.pcm) / SAMPLE_RATE
        self.now = end + wait
        gap = turn.pause and (start + turn.pause[0], start + turn.pause[1])
        story_end = None if turn.story_end is None else start + turn.story_end
        return CallerTurn(intent, start, end, gap, interrupts, story_end)

    def record(self, through: Background | Microphone) -> Pcm:
        pcm = np.zeros(int(self.now * SAMPLE_RATE), np.float32)
        for start, words in self.parts:
            add_at(words, pcm, int(start * SAMPLE_RATE))
        if isinstance(through, Microphone):
            return through.record(pcm, self.parts[0][1], self.random)
        return through.over(pcm, rms(self.parts[0][1]), self.random)


def question_calls(count: int, seed: int, pauses: bool = False) -> list[TestCall]:
    """Calls of several turns; the caller waits for every answer."""
    return [_call([seed, 1 + pauses], index, pauses=pauses) for index in range(count)]


def prompt_calls(count: int, seed: int) -> list[TestCall]:
    """Calls that ask for what only the prompt says, among it a name that is not of the training."""
    return [_call([seed, 6], index, prompt=True) for index in range(count)]


def interrupting_calls(count: int, seed: int) -> list[TestCall]:
    """Calls in which the second question starts 0.9 to 1.3 s after the end of the first."""
    return [_call([seed, 3], index, interrupt=True) for index in range(count)]


def story_calls(count: int, seed: int) -> list[TestCall]:
    """Calls in which a story precedes each question."""
    return [_call([seed, 4], index, story=True) for index in range(count)]


def voice_calls(
    persons: Sequence[Person], microphone: Microphone, count: int, seed: int
) -> list[TestCall]:
    """Calls of several turns, in one voice after the other: the same for every microphone."""
    calls = []
    for index in range(count):
        random = np.random.default_rng([seed, 5, index])
        character = script.sample_character(random)
        voice = str(random.choice(list(AGENT_VOICES)))
        intents = random.choice(script.intents(character.role), _TURNS, replace=False)
        track = _CallerTrack(random, persons[index % len(persons)], [])
        turns = tuple(track.say(str(intent), wait=_ANSWER_SECONDS) for intent in intents)
        calls.append(TestCall(character, voice, track.record(microphone), turns))
    return calls


def _call(
    seeds: list[int],
    index: int,
    pauses: bool = False,
    interrupt: bool = False,
    story: bool = False,
    prompt: bool = False,
) -> TestCall:
    # One generator for each call: the length of espeak's audio varies from run to run, and noise
    # consumes one random number a sample, so a shared generator would not be reproducible.
    random = np.random.default_rng([*seeds, index])
    names = HELD_OUT_NAMES if prompt else NAMES
    character = script.sample_character(random, "restaurant" if prompt else None, names)
    manners = held_out_voices()
    track = _CallerTrack(random, manners[index % len(manners)], [])
    known = _OF_THE_PROMPT if prompt else script.intents(character.role)
    turns: list[CallerTurn] = []
    if interrupt:
        # The answer to "hello" is long enough to be interrupted.
        turns.append(track.say("hello", wait=float(random.uniform(0.9, 1.3))))
        intent = known[int(random.integers(2, len(known)))]
        turns.append(track.say(intent, wait=_ANSWER_SECONDS, interrupts=True))
    else:
        for _ in range(_TURNS):
            intent = known[int(random.integers(len(known)))]
            turns.append(track.say(intent, wait=_ANSWER_SECONDS, pause=pauses, story=story))
    voice = list(AGENT_VOICES)[int(random.integers(len(AGENT_VOICES)))]
    pcm = track.record(Background.sample(random, held_out=True))
    return TestCall(character, voice, pcm, tuple(turns))
