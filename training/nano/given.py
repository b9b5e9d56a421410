"""Sentences that the agent says because it was given them, as ``say`` does in a call.

Most are recombined from words of several recordings, so that hardly any occurs twice: a model that
hears the same few hundred sentences again and again learns them by heart, and says one of them
whatever it is given.
"""

from __future__ import annotations

import numpy as np
import torch

from training.nano import script, wordings
from training.nano.names import HELD_OUT_NAMES
from training.nano.pool import AgentClip, Pool

LINE_SHARE = 0.4
RECOMBINED_SHARE = 0.5
_PARTS = (2, 5)
_PART_WORDS = (1, 4)
_HELD_OUT = frozenset(map(wordings.bare, HELD_OUT_NAMES))


class GivenSentences:
    """Samples sentences of both agent voices.

    Args:
        pool: The recordings.
        line_share: Share of lines of the character's script.
        recombined_share: Share of recombined sentences; the rest are other recorded sentences.
    """

    def __init__(
        self,
        pool: Pool,
        line_share: float = LINE_SHARE,
        recombined_share: float = RECOMBINED_SHARE,
    ):
        self._pool = pool
        self._line_share, self._recombined_share = line_share, recombined_share
        self._lines = {
            voice: [clip for clip in clips.values() if _is_known(clip)]
            for voice, clips in pool.agent.items()
        }

    def sample(
        self, voice: str, character: script.Character, random: np.random.Generator
    ) -> AgentClip:
        """Sample a sentence that a character may be given."""
        kind = random.random()
        if kind < self._line_share:
            intents = script.intents(character.role)
            answer = character.answer(intents[int(random.integers(len(intents)))])
            return self._pool.agent[voice][answer]
        if kind < self._line_share + self._recombined_share:
            return self.recombined(voice, random)
        return _any(self._pool.others[voice], random)

    def recombined(self, voice: str, random: np.random.Generator) -> AgentClip:
        """A few words each of several recordings of one voice, one after the other.

        Only the last word ends a sentence in its recording: the agent must fall silent after such a
        word, and not continue with another sentence.
        """
        count = int(random.integers(*_PARTS, endpoint=True))
        sources = [self._lines[voice], self._pool.others[voice]]
        clips = [_any(sources[int(random.integers(2))], random) for _ in range(count)]
        inner = [_inner_words(clip, random) for clip in clips[:-1]]
        parts = [*(part for part in inner if part.onsets), _last_words(clips[-1], random)]
        starts = [0, *np.cumsum([len(part.codes) for part in parts[:-1]]).tolist()]
        return AgentClip(
            " ".join(part.text for part in parts),
            torch.cat([part.codes for part in parts]),
            [
                start + onset
                for start, part in zip(starts, parts, strict=True)
                for onset in part.onsets
            ],
        )


def _is_known(clip: AgentClip) -> bool:
    """Whether a line has none of the names that the training must not see."""
    return _HELD_OUT.isdisjoint(map(wordings.bare, clip.text.split()))


def _inner_words(clip: AgentClip, random: np.random.Generator) -> AgentClip:
    """Some words from within a sentence; none if the clip has only last words."""
    words = clip.text.split()
    inner = [index for index, word in enumerate(words) if word[-1] not in ".?!"]
    if not inner:
        return _part(clip, 0, 0)
    first = end = inner[int(random.integers(len(inner)))]
    most = first + int(random.integers(*_PART_WORDS, endpoint=True))
    while end < most and end in inner:
        end += 1
    return _part(clip, first, end)


def _last_words(clip: AgentClip, random: np.random.Generator) -> AgentClip:
    """The last words of a clip."""
    count = len(clip.onsets)
    return _part(clip, max(0, count - int(random.integers(*_PART_WORDS, endpoint=True))), count)


def _part(clip: AgentClip, first: int, end: int) -> AgentClip:
    bounds = [*clip.onsets, len(clip.codes)]
    begin = bounds[first]
    return AgentClip(
        " ".join(clip.text.split()[first:end]),
        clip.codes[begin : bounds[end]],
        [onset - begin for onset in clip.onsets[first:end]],
    )


def _any(clips: list[AgentClip], random: np.random.Generator) -> AgentClip:
    return clips[int(random.integers(len(clips)))]
