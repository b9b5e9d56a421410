"""Background noises of callers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano.espeak import Pcm

Noise = Callable[[np.random.Generator, int], Pcm]
"""(random, samples) -> noise at an RMS of 1."""


def _coloured(random: np.random.Generator, samples: int, slope: float) -> Pcm:
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    # Flat below 50 Hz, which microphones do not record.
    spectrum *= np.maximum(frequencies, 50.0) ** (-slope)
    return _unit(np.fft.irfft(spectrum, samples))


def _unit(noise: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Pcm:
    pcm: Pcm = (noise / (np.sqrt(np.mean(np.square(noise))) + 1e-12)).astype(np.float32)
    return pcm


def white(random: np.random.Generator, samples: int) -> Pcm:
    """Equal power at all frequencies."""
    return _coloured(random, samples, 0.0)


def pink(random: np.random.Generator, samples: int) -> Pcm:
    """Minus 3 dB per octave, like room noise."""
    return _coloured(random, samples, 0.5)


def hum(random: np.random.Generator, samples: int) -> Pcm:
    """Mains hum at 50 or 60 Hz with harmonics."""
    time = np.arange(samples) / SAMPLE_RATE
    base = random.choice([50.0, 60.0])
    tones = [np.sin(2 * np.pi * base * k * time + random.uniform(0, 6.28)) / k for k in range(1, 6)]
    return _unit(np.sum(tones, axis=0) + 0.05 * random.standard_normal(samples))


def babble(random: np.random.Generator, samples: int) -> Pcm:
    """Like many distant voices: noise in the band of speech, modulated at syllable rates."""
    noise = _coloured(random, samples, 0.6)
    time = np.arange(samples) / SAMPLE_RATE
    swell = sum(
        np.sin(2 * np.pi * random.uniform(1.5, 6.0) * time + random.uniform(0, 6.28))
        for _ in range(4)
    )
    return _unit(noise * (1.2 + 0.4 * swell))


def brown(random: np.random.Generator, samples: int) -> Pcm:
    """Minus 6 dB per octave, like traffic. For evaluation only."""
    return _coloured(random, samples, 1.0)


def gusts(random: np.random.Generator, samples: int) -> Pcm:
    """Pink noise with slowly varying level. For evaluation only."""
    time = np.arange(samples) / SAMPLE_RATE
    swell = 1 + 0.7 * np.sin(2 * np.pi * random.uniform(0.2, 0.7) * time + random.uniform(0, 6.28))
    return _unit(_coloured(random, samples, 0.5) * swell)


TRAINING_NOISES: tuple[Noise, ...] = (white, pink, hum, babble)
HELD_OUT_NOISES: tuple[Noise, ...] = (brown, gusts)


def rms(pcm: Pcm) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(pcm)) + 1e-12))
