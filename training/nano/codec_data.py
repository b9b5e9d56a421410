"""Training excerpts for the codec: clear voices, callers in noise, and each frame's phonemes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS
from training.nano.espeak import Manner, Pcm, Utterance, speaker
from training.nano.material import WORDS, sentence
from training.nano.noise import TRAINING_NOISES, rms
from training.nano.voices import ACCENTS, CLEAR_VOICES, sample_user_voice

_CLEAR_SHARE = 0.7  # share of excerpts with a clear voice
_SILENCE_SHARE = 0.04  # share of excerpts that are silent
_LEAD_SECONDS = 0.8  # longest silence before a sentence
_SENTENCES_EACH = 8
# Seconds. A phoneme with a shorter overlap is not a target of the frame: it is inaudible there.
_MIN_OVERLAP = 0.02


class Phonemes:
    """Maps espeak's phonemes to columns of a multi-hot target; column 0 is silence."""

    def __init__(self, names: list[str]):
        self._columns = {name: 1 + index for index, name in enumerate(names)}

    @classmethod
    def of_english(cls) -> Phonemes:
        """All phonemes of the training words in the training accents, in a fixed order."""
        spoken = [speaker().say(" ".join(WORDS), Manner(accent)) for accent in sorted(ACCENTS)]
        return cls(sorted({n for u in spoken for n, _ in u.phonemes if not n.startswith("_")}))

    def __len__(self) -> int:
        return 1 + len(self._columns)

    def targets(self, utterance: Utterance, lead: float, frames: int) -> Tensor:
        """Multi-hot target [frames, phonemes] of an utterance that starts at ``lead`` seconds."""
        target = torch.zeros(frames, len(self))
        onsets = [onset for _, onset in utterance.phonemes] + [utterance.seconds]
        for (name, start), end in zip(utterance.phonemes, onsets[1:], strict=True):
            column = self._columns.get(name)
            if column is None:
                continue
            first = int(max(0.0, (lead + start + _MIN_OVERLAP) / FRAME_SECONDS))
            last = int((lead + end - _MIN_OVERLAP) / FRAME_SECONDS)
            target[first : max(first, last) + 1, column] = 1
        target[:, 0] = (target[:, 1:].sum(dim=1) == 0).float()
        return target


@dataclass(frozen=True)
class Batch:
    """Audio [B, frames * 1920] and phoneme targets [B, frames, phonemes]."""

    pcm: Tensor
    phonemes: Tensor


class CodecData:
    """A pool of utterances and a sampler of excerpts with random lead, level and noise.

    Args:
        clear_sentences: Sentences for each of the clear voices.
        users: Number of callers' voices.
        seed: Random seed of the sentences.
    """

    def __init__(self, clear_sentences: int, users: int, seed: int = 0):
        random = np.random.default_rng(seed)
        self._clear = [
            speaker().say(sentence(random), manner.varied(random))
            for manner in CLEAR_VOICES.values()
            for _ in range(clear_sentences)
        ]
        self._users = [
            speaker().say(sentence(random), manner)
            for manner in (sample_user_voice(random) for _ in range(users))
            for _ in range(_SENTENCES_EACH)
        ]
        self.phonemes = Phonemes.of_english()

    def batch(self, random: np.random.Generator, size: int, frames: int) -> Batch:
        """Sample a batch of ``size`` excerpts."""
        rows = [self._excerpt(random, frames) for _ in range(size)]
        return Batch(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))

    def _excerpt(self, random: np.random.Generator, frames: int) -> tuple[Tensor, Tensor]:
        samples = frames * FRAME_SAMPLES
        pcm = np.zeros(samples, np.float32)
        clear = random.random() < _CLEAR_SHARE
        pool = self._clear if clear else self._users
        utterance = pool[int(random.integers(len(pool)))]
        # A negative lead starts the excerpt inside the sentence.
        lead = float(random.uniform(-utterance.seconds * 0.7, _LEAD_SECONDS))
        if clear:
            # It starts on a frame boundary, as the agent's sentences do in dialogues.
            lead = round(lead / FRAME_SECONDS) * FRAME_SECONDS
        add_at(utterance.pcm, pcm, round(lead * 24_000))
        target = self.phonemes.targets(utterance, lead, frames)
        if random.random() < _SILENCE_SHARE:
            pcm[:] = 0
            target = torch.zeros_like(target)
            target[:, 0] = 1
        if not clear:
            pcm = degrade(pcm, rms(utterance.pcm), random)
        return torch.from_numpy(pcm), target


def add_at(source: Pcm, into: Pcm, at: int) -> None:
    """Add ``source`` to ``into`` at sample ``at``, which may be negative; clips at both ends."""
    start, end = max(0, at), min(len(into), at + len(source))
    if end > start:
        into[start:end] += source[start - at : end - at]


def degrade(pcm: Pcm, speech_rms: float, random: np.random.Generator) -> Pcm:
    """Apply a random level and noise at 15 to 40 dB SNR; one caller in four gets no noise."""
    gain = 10 ** (random.uniform(-14, 3) / 20)
    if random.random() < 0.25:
        return (pcm * gain).clip(-1, 1).astype(np.float32)
    noise = TRAINING_NOISES[int(random.integers(len(TRAINING_NOISES)))](random, len(pcm))
    level = speech_rms * 10 ** (-random.uniform(15, 40) / 20)
    return ((pcm + level * noise) * gain).clip(-1, 1).astype(np.float32)
