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
from training.nano.caller_turns import load_turns, turns_files
from training.nano.codec_data import Phonemes
from training.nano.espeak import Manner, Utterance, speaker
from training.nano.microphone import Microphone, heard
from training.nano.pool import measures_training
from training.nano.progress import StateMissing
from training.nano.recordings import Recording
from training.nano.turns import Turn, word_frames

_LEAD_SECONDS = (0.1, 0.7)
_TAIL_SECONDS = 0.4
# Batches have few different lengths: each needs machine code of its own for every convolution.
_LENGTHS_APART = 8
_LONGEST_SECONDS = 4.6  # of a turn; longer ones are left out
_ACCENT = "en-us"
_NOTHING = "_"  # no phoneme


def _frames(seconds: float) -> int:
    """The length of a batch whose last words end after ``seconds``."""
    frames = int((seconds + _TAIL_SECONDS) / FRAME_SECONDS)
    return frames + -frames % _LENGTHS_APART


MOST_FRAMES = _frames(_LEAD_SECONDS[1] + _LONGEST_SECONDS)


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
    """Endless batches of turns, each through another random microphone.

    Args:
        turns: Rows of ``caller_turns``.
        size: Turns in a batch.
        seed: Seed of microphones and sampling.
        rank: Number of the process. All take turns of about the same length at a time, so that none
            waits for another.
    """

    def __init__(
        self, turns: list[dict[str, Any]], size: int, seed: Sequence[int] = (0,), rank: int = 0
    ):
        self._turns = sorted(turns, key=lambda row: len(row["pcm"]))
        self._size, self._seed, self._rank = size, seed, rank

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        seed = [*self._seed, worker.id if worker else 0]
        shared, own = np.random.default_rng(seed), np.random.default_rng([*seed, 1 + self._rank])
        while True:
            yield self.batch(own, lengths=shared)

    def batch(
        self, random: np.random.Generator, lengths: np.random.Generator | None = None
    ) -> Batch:
        """Sample turns of similar lengths, so that little of a batch is padding."""
        near = 12 * self._size
        first = int((lengths or random).integers(max(1, len(self._turns) - near)))
        some = random.integers(first, min(len(self._turns), first + near), self._size)
        recordings = [Recording.of(self._turns[int(index)]) for index in some]
        leads = random.uniform(*_LEAD_SECONDS, len(recordings))
        longest = max(
            lead + len(each.turn.pcm) / SAMPLE_RATE
            for lead, each in zip(leads, recordings, strict=True)
        )
        frames = _frames(longest)
        pcm = np.zeros((len(recordings), frames * FRAME_SAMPLES), np.float32)
        word_ends = torch.full((len(recordings), frames), -1)
        sounds = []
        for row, (lead, recording) in enumerate(zip(leads, recordings, strict=True)):
            turn = recording.turn
            pcm[row] = heard(Microphone.sample(random), turn.pcm, lead, pcm.shape[1], random)
            sounds.append(phonemes().targets(with_phonemes(turn), lead, frames))
            for frame, word in word_frames(turn, lead):
                word_ends[row, frame] = word
        return Batch(torch.from_numpy(pcm), torch.stack(sounds), word_ends)


def read_turns(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The turns for training, and those of callers that measure it, without long ones.

    Raises:
        StateMissing: ``speak`` has made no callers.
    """
    training: list[dict[str, Any]] = []
    unseen: list[dict[str, Any]] = []
    for path in turns_files(folder):
        for caller in load_turns(path):
            short = [r for r in caller if len(r["pcm"]) < _LONGEST_SECONDS * SAMPLE_RATE]
            (unseen if measures_training(path) else training).extend(short)
    if not training:
        raise StateMissing(f"no short turns for training in {folder / 'turns'}: `speak` more")
    return training, unseen
