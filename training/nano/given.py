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
        """A few words each of several recordings of one voice, one after the other."""
        count = int(random.integers(*_PARTS, endpoint=True))
        sources = [self._lines[voice], self._pool.others[voice]]
        parts = [
            _some_words(_any(sources[int(random.integers(2))], random), random)
            for _ in range(count)
        ]
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


def _some_words(clip: AgentClip, random: np.random.Generator) -> AgentClip:
    words = clip.text.split()
    count = min(len(words), int(random.integers(*_PART_WORDS, endpoint=True)))
    first = int(random.integers(len(words) - count + 1))
    ends = [*clip.onsets, len(clip.codes)]
    begin, end = clip.onsets[first], ends[first + count]
    return AgentClip(
        " ".join(words[first : first + count]),
        clip.codes[begin:end],
        [onset - begin for onset in clip.onsets[first : first + count]],
    )


def _any(clips: list[AgentClip], random: np.random.Generator) -> AgentClip:
    return clips[int(random.integers(len(clips)))]
