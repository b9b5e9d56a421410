"""Batches for the encoder: callers' turns through random microphones, with what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from training.nano import wordings
from training.nano.caller_turns import load_turns
from training.nano.codec_data import Phonemes, add_at
from training.nano.espeak import Manner, Pcm, Utterance, speaker
from training.nano.microphone import Microphone, block_dc
from training.nano.pool import measures_training
from training.nano.recordings import Recording
from training.nano.turns import Turn

_LEAD_SECONDS = (0.1, 0.7)
_TAIL_SECONDS = 0.4
_LENGTHS_APART = 8
LONGEST_SECONDS = 4.6  # of a turn; longer ones are left out
_ACCENT = "en-us"
_NOTHING = "_"  # no phoneme


@cache
def phonemes() -> Phonemes:
    """The phonemes of all callers' words, in one accent, whatever the caller's."""
    words = wordings.caller_words()
    return Phonemes(sorted({name for word in words for name, _ in pronounced(word)}))


@cache
def pronounced(word: str) -> tuple[tuple[str, float], ...]:
    """A word's phonemes, each with its onset as a share of the word's duration."""
    spoken = speaker().say(word, Manner(_ACCENT))
    named = [(name, onset) for name, onset in spoken.phonemes if not name.startswith("_")]
    first = named[0][1] if named else 0.0
    return tuple((name, (onset - first) / (spoken.seconds - first)) for name, onset in named)


def with_phonemes(turn: Turn) -> Utterance:
    """A turn with phonemes: those of each word as espeak-ng times them, stretched to the word."""
    spoken: list[tuple[str, float]] = []
    begin = 0.0
    for word, end in turn.words:
        if turn.pause is not None and begin < turn.pause[1] <= end:
            begin = turn.pause[1]
        for name, onset in pronounced(wordings.bare(word)):
            spoken.append((name, begin + onset * (end - begin)))
        spoken.append((_NOTHING, end))
        begin = end
    return Utterance("", turn.pcm, (), tuple(spoken))


@dataclass(frozen=True)
class Batch:
    """Callers' turns through microphones.

    Attributes:
        pcm: Callers, [B, frames * 1920].
        sounds: The phonemes of each frame, [B, frames, phonemes]; see ``Phonemes``.
        word_ends: The word that has just ended in each frame, [B, frames]; -1 for none.
    """

    pcm: Tensor
    sounds: Tensor
    word_ends: Tensor


class CallersHeard(IterableDataset[Batch]):
    """Batches without end.

    Args:
        turns: Rows of ``caller_turns``.
        size: Turns in a batch.
        seed: Seed of microphones and sampling.
    """

    def __init__(self, turns: list[dict[str, Any]], size: int, seed: Sequence[int] = (0,)):
        self._turns = sorted(turns, key=lambda row: len(row["pcm"]))
        self._size, self._seed = size, seed
        self._words = {word: index for index, word in enumerate(wordings.caller_words())}

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        random = np.random.default_rng([*self._seed, worker.id if worker else 0])
        while True:
            yield self.batch(random)

    def batch(self, random: np.random.Generator) -> Batch:
        """Sample turns of similar lengths, so that little of a batch is padding."""
        near = 12 * self._size
        first = int(random.integers(max(1, len(self._turns) - near)))
        some = random.integers(first, min(len(self._turns), first + near), self._size)
        recordings = [Recording.of(self._turns[int(index)]) for index in some]
        leads = random.uniform(*_LEAD_SECONDS, len(recordings))
        longest = max(
            lead + len(each.turn.pcm) / SAMPLE_RATE
            for lead, each in zip(leads, recordings, strict=True)
        )
        frames = int((longest + _TAIL_SECONDS) / FRAME_SECONDS)
        # Few different lengths: each needs machine code of its own for every convolution.
        frames += -frames % _LENGTHS_APART
        pcm = np.zeros((len(recordings), frames * FRAME_SAMPLES), np.float32)
        word_ends = torch.full((len(recordings), frames), -1)
        sounds = []
        for row, (lead, recording) in enumerate(zip(leads, recordings, strict=True)):
            pcm[row] = self._recorded(recording, lead, frames, random)
            sounds.append(phonemes().targets(with_phonemes(recording.turn), lead, frames))
            for word, end in recording.turn.words:
                index = self._words.get(wordings.bare(word))
                frame = -int(-(lead + end) // FRAME_SECONDS)
                if index is not None and frame < frames:
                    word_ends[row, frame] = index
        return Batch(torch.from_numpy(pcm), torch.stack(sounds), word_ends)

    @staticmethod
    def _recorded(
        recording: Recording, lead: float, frames: int, random: np.random.Generator
    ) -> Pcm:
        speech = recording.turn.pcm
        track = np.zeros(frames * FRAME_SAMPLES, np.float32)
        add_at(speech, track, int(lead * SAMPLE_RATE))
        return block_dc(Microphone.sample(random).record(track, speech, random))


def read_turns(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The turns for training, and those of callers that measure it."""
    training: list[dict[str, Any]] = []
    unseen: list[dict[str, Any]] = []
    for path in sorted((folder / "turns").glob("*.pt")):
        for caller in load_turns(path):
            short = [r for r in caller if len(r["pcm"]) < LONGEST_SECONDS * SAMPLE_RATE]
            (unseen if measures_training(path) else training).extend(short)
    if not training:
        raise FileNotFoundError(f"no turns of callers in {folder / 'turns'}: run `speak` first")
    return training, unseen
