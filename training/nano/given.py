"""Sentences that the agent is given, as by ``say`` in a call: lines, and words one after the other.

A word outside the script is recorded once, by itself. Its codes are the same in every sentence, so
that a small model can learn them as it learns a name: from text to sound, whatever stands before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from training.nano import script, wordings
from training.nano.facts import FACTS, number_words
from training.nano.material import DAYS, FORMS, WORDS, sentence
from training.nano.names import HELD_OUT_NAMES, NAMES
from training.nano.pool import AgentClip, Pool
from training.nano.wordings import bare

# Shares of the script's lines, and of lines that go on with other words than the script's.
_LINE_SHARE, _OTHER_END_SHARE = 0.65, 0.1
# Share of the lines that the agent's role and prompt could make it say; the others are any lines.
_OWN_SHARE = 0.5
# Share of callers' wordings among the sentences of single words; the others are random words.
_WORDING_SHARE = 0.4
# Frames of silence that follow a comma or a stop, after the decay of its word.
_STOP_FRAMES = 1


def vocabulary() -> tuple[str, ...]:
    """All words that the agent can say one by one, in lower case, in a fixed order."""
    numbers = (number_words(number) for number in (*range(20), *range(20, 100, 10), 100, 1000))
    values = (value.spoken for values in FACTS.values() for value in values)
    texts = (
        *WORDS,
        *DAYS,
        *numbers,
        *values,
        *script.all_lines(),
        *wordings.caller_words(),
        *FORMS,
    )
    known = {bare(word) for text in texts for word in text.split() if "{" not in word}
    return tuple(sorted(known | {name.lower() for name in (*NAMES, *HELD_OUT_NAMES)}))


def sample_given(
    pool: Pool, voice: str, character: script.Character, random: np.random.Generator
) -> AgentClip:
    """Sample a sentence that a call might force on the agent.

    Args:
        pool: The clips.
        voice: The agent's voice.
        character: Who the agent is.
        random: Source of the choices.
    """
    kind = random.random()
    if kind < _LINE_SHARE:
        return _line(pool, voice, character, random)
    words = say_words(_text(random), pool.words[voice], pool.silence)
    if kind < _LINE_SHARE + _OTHER_END_SHARE:
        return _go_on(_line(pool, voice, character, random), words, random)
    return words


def _line(
    pool: Pool, voice: str, character: script.Character, random: np.random.Generator
) -> AgentClip:
    lines = pool.agent[voice]
    if random.random() < _OWN_SHARE:
        intents = script.intents(character.role)
        return lines[character.answer(intents[int(random.integers(len(intents)))])]
    return list(lines.values())[int(random.integers(len(lines)))]


def _text(random: np.random.Generator) -> str:
    if random.random() < _WORDING_SHARE:
        intents = list(wordings.INTENTS)
        return wordings.sample_wording(intents[int(random.integers(len(intents)))], random)
    return sentence(random)


def say_words(text: str, words: Mapping[str, AgentClip], silence: list[int]) -> AgentClip:
    """A sentence of words that were recorded one by one.

    Args:
        text: Words of ``vocabulary``, with punctuation.
        words: The words' clips; the last frame of each is its decay.
        silence: The 8 codes of silence.
    """
    stop = torch.tensor([silence] * _STOP_FRAMES, dtype=torch.int16)
    codes: list[Tensor] = []
    onsets: list[int] = []
    at = 0
    for word in text.split():
        own = words[bare(word)].codes
        own = torch.cat((own, stop)) if word[-1] in ".,?!" else own[:-1]
        codes.append(own)
        onsets.append(at)
        at += len(own)
    return AgentClip(text, torch.cat(codes), onsets)


def _go_on(line: AgentClip, words: AgentClip, random: np.random.Generator) -> AgentClip:
    """The beginning of a line, then other words."""
    own = line.text.split()
    if len(own) < 2:
        return words
    kept = int(random.integers(1, len(own)))
    at = line.onsets[kept]
    return AgentClip(
        " ".join((*own[:kept], words.text)),
        torch.cat((line.codes[:at], words.codes)),
        [*line.onsets[:kept], *(at + onset for onset in words.onsets)],
    )
