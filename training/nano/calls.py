"""Calls by people the model has never heard: held-out voices, wordings and noises."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano import script, wordings
from training.nano.clips import Background, speak_turn, tell_story
from training.nano.codec_data import place
from training.nano.espeak import Manner, Pcm, speaker
from training.nano.noise import rms
from training.nano.voices import AGENT_VOICES, held_out_voices

_BEFORE_SECONDS = 1.0
# After the caller's words: an answer and some more.
_ANSWER_SECONDS = 4.8
_TURNS = 4


@dataclass(frozen=True)
class Spoken:
    """A turn of the caller, in seconds from the start of the call.

    Attributes:
        intent: What is asked.
        start: Of the first word.
        end: Of the last word.
        pause: From and to; None where the words come in one go.
        interrupts: Whether the agent's last answer has not ended yet.
        told: When a story before the question has ended; None without one.
    """

    intent: str
    start: float
    end: float
    pause: tuple[float, float] | None = None
    interrupts: bool = False
    told: float | None = None


@dataclass(frozen=True)
class TestCall:
    """A call to be held.

    Attributes:
        character: Who the agent is to be.
        voice: What it is to sound like.
        pcm: The caller.
        turns: What the caller says, in order.
    """

    character: script.Character
    voice: str
    pcm: Pcm
    turns: tuple[Spoken, ...]


@dataclass
class _Tape:
    """A caller's audio, growing."""

    random: np.random.Generator
    manner: Manner
    parts: list[tuple[float, Pcm]]
    now: float = _BEFORE_SECONDS

    def say(
        self,
        intent: str,
        wait: float,
        pause: bool = False,
        interrupts: bool = False,
        story: bool = False,
    ) -> Spoken:
        text = str(self.random.choice(wordings.wordings(intent, held_out=True)))
        if story:
            first = str(self.random.choice(wordings.stories(held_out=True)))
            turn = tell_story(first, text, self.manner, self.random)
        else:
            turn = speak_turn(text, self.manner, self.random, pause)
        # Frames know nothing of where a word begins.
        start = self.now + self.random.uniform(0, 0.08)
        self.parts.append((start, turn.pcm))
        end = start + len(turn.pcm) / SAMPLE_RATE
        self.now = end + wait
        gap = turn.pause and (start + turn.pause[0], start + turn.pause[1])
        told = None if turn.told is None else start + turn.told
        return Spoken(intent, start, end, gap, interrupts, told)

    def record(self, background: Background) -> Pcm:
        pcm = np.zeros(int(self.now * SAMPLE_RATE), np.float32)
        for start, words in self.parts:
            place(words, pcm, int(start * SAMPLE_RATE))
        return background.over(pcm, rms(self.parts[0][1]), self.random)


def question_calls(count: int, seed: int, pauses: bool = False) -> list[TestCall]:
    """Calls of some turns each, in which every answer is waited for."""
    return [_call([seed, 1 + pauses], index, pauses=pauses) for index in range(count)]


def interrupting_calls(count: int, seed: int) -> list[TestCall]:
    """Calls in which the second question comes 0.9 to 1.3 s after the first one's end."""
    return [_call([seed, 3], index, interrupt=True) for index in range(count)]


def story_calls(count: int, seed: int) -> list[TestCall]:
    """Calls in which each question comes after a story."""
    return [_call([seed, 4], index, story=True) for index in range(count)]


def _call(
    seeds: list[int],
    index: int,
    pauses: bool = False,
    interrupt: bool = False,
    story: bool = False,
) -> TestCall:
    # A generator each: espeak's audio is never twice of the same length, and noise draws as many
    # numbers as there are samples.
    random = np.random.default_rng([*seeds, index])
    character = script.draw_character(random)
    manners = held_out_voices()
    tape = _Tape(random, manners[index % len(manners)], [])
    known = script.intents(character.role)
    turns: list[Spoken] = []
    if interrupt:
        # Its answer is long enough to be interrupted.
        turns.append(tape.say("hello", wait=float(random.uniform(0.9, 1.3))))
        asked = known[int(random.integers(2, len(known)))]
        turns.append(tape.say(asked, wait=_ANSWER_SECONDS, interrupts=True))
    else:
        for _ in range(_TURNS):
            asked = known[int(random.integers(len(known)))]
            turns.append(tape.say(asked, wait=_ANSWER_SECONDS, pause=pauses, story=story))
    voice = list(AGENT_VOICES)[int(random.integers(len(AGENT_VOICES)))]
    pcm = tape.record(Background.draw(random, held_out=True))
    return TestCall(character, voice, pcm, tuple(turns))


def reference(voice: str, text: str) -> Pcm:
    """A sentence as espeak says it in an agent's voice."""
    return speaker().say(text, AGENT_VOICES[voice]).pcm
