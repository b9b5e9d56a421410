"""Callers of two small synthesisers: SVOX Pico, and flite with its diphone and recorded voices."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile
import soxr

from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano.espeak import Pcm, Utterance
from training.nano.kokoro import aligned

_PICO_RATE = 16_000
_FLITE_PITCH = {"slt": 170.0, "kal16": 105.0}  # Hz


@cache
def _pico() -> object:
    from py_nanotts import NanoTTS

    return NanoTTS()


@dataclass(frozen=True)
class PicoVoice:
    """A voice of SVOX Pico.

    Attributes:
        language: ``en-US`` or ``en-GB``.
        speed: Factor on the speed.
        pitch: Factor on the pitch.
    """

    language: str
    speed: float = 1.0
    pitch: float = 1.0

    def say(self, text: str) -> Utterance:
        """Synthesise ``text``."""
        raw = _pico().speak(  # type: ignore[attr-defined]
            text, voice=self.language, speed=self.speed, pitch=self.pitch
        )
        pcm = np.frombuffer(raw, np.int16).astype(np.float32) / 32768
        return aligned(text, soxr.resample(pcm, _PICO_RATE, SAMPLE_RATE).astype(np.float32))

    def begin_turn(self, random: np.random.Generator) -> Callable[[str], Utterance]:
        """How this voice says the words of one turn."""
        return PicoVoice(
            self.language,
            self.speed * float(random.uniform(0.95, 1.05)),
            self.pitch * float(random.uniform(0.96, 1.04)),
        ).say


@dataclass(frozen=True)
class FliteVoice:
    """A voice of flite.

    Attributes:
        name: ``slt`` or ``kal16`` for training; ``rms`` and ``awb`` for evaluation only.
        stretch: Factor on the duration.
        settings: More of flite's settings, such as ``int_f0_target_mean=120``.
    """

    name: str
    stretch: float = 1.0
    settings: tuple[str, ...] = ()

    def say(self, text: str) -> Utterance:
        """Synthesise ``text``.

        Raises:
            RuntimeError: flite is not installed.
        """
        command = ["flite", "-voice", self.name, "-t", text]
        for setting in (f"duration_stretch={self.stretch:.3f}", *self.settings):
            command += ["--setf", setting]
        return aligned(text, spoken(command, "flite"))

    def begin_turn(self, random: np.random.Generator) -> Callable[[str], Utterance]:
        """How this voice says the words of one turn."""
        stretch = self.stretch * float(random.uniform(0.95, 1.05))
        return FliteVoice(self.name, stretch, self.settings).say


def spoken(command: list[str], package: str, text: str | None = None) -> Pcm:
    """Audio that a command writes into the WAV file of its option ``-o``, at 24 kHz.

    Raises:
        RuntimeError: The command is not installed.
    """
    # A file, because programs complete a WAV header at the end, which a pipe does not allow.
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        try:
            subprocess.run(
                [*command, "-o", file.name],
                input=None if text is None else text.encode(),
                capture_output=True,
                check=True,
            )
        except FileNotFoundError:
            raise RuntimeError(f"{package} is not installed: apt-get install {package}") from None
        pcm, rate = soundfile.read(file.name, dtype="float32")
    resampled: Pcm = soxr.resample(pcm, rate, SAMPLE_RATE).astype(np.float32)
    return resampled


def sample_pico_voice(random: np.random.Generator) -> PicoVoice:
    """Sample a voice of Pico for training."""
    return PicoVoice(
        str(random.choice(["en-US", "en-GB"])),
        speed=float(random.uniform(0.8, 1.3)),
        pitch=float(random.uniform(0.75, 1.25)),
    )


def sample_flite_voice(random: np.random.Generator) -> FliteVoice:
    """Sample a voice of flite for training."""
    name = str(random.choice(list(_FLITE_PITCH)))
    pitch = _FLITE_PITCH[name] * random.uniform(0.8, 1.25)
    spread = random.uniform(10, 35)
    return FliteVoice(
        name,
        stretch=float(random.uniform(0.8, 1.25)),
        settings=(f"int_f0_target_mean={pitch:.1f}", f"int_f0_target_stddev={spread:.1f}"),
    )
