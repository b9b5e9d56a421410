"""What a caller's microphone and line make of the voice: room, noise, band, codec, level."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import soxr
from scipy.signal import fftconvolve, lfilter

from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.eval.latency.mulaw import decode_mulaw, encode_mulaw
from training.nano.codec_data import add_at
from training.nano.espeak import Pcm
from training.nano.noise import TRAINING_NOISES, Noise, rms

_TELEPHONE_RATE = 8_000
_TELEPHONE_BAND = (250.0, 3_500.0)
_OPUS_SAMPLES = 480  # 20 ms
_KNOTS = 8  # of an equaliser's curve


@dataclass(frozen=True)
class Microphone:
    """A caller's room, microphone and line. The default records the voice as it is.

    Attributes:
        noise: The kind of noise; None for a quiet room.
        snr: Signal-to-noise ratio in dB.
        reverberation: Seconds in which the room's echo falls by 60 dB; 0 for none.
        echo: Energy of the room's echo, relative to the direct sound.
        curve: Gains of an equaliser in dB, at frequencies evenly spaced by octave; empty for none.
        top: Highest frequency in Hz.
        line: None, ``telephone`` (8 kHz, mu-law) or ``opus``.
        peak: Level of the loudest speech, in dB of full scale; None leaves it.
        clip: Level in dB, relative to the loudest speech, at which the microphone clips.
        hum: Level of mains hum in dB of full scale; None for none.
        offset: DC offset of the sound card.
        seed: Seed of the room and the noise.
    """

    noise: Noise | None = None
    snr: float = 30.0
    reverberation: float = 0.0
    echo: float = 0.0
    curve: tuple[float, ...] = field(default=())
    top: float = SAMPLE_RATE / 2
    line: str | None = None
    peak: float | None = None
    clip: float = 0.0
    hum: float | None = None
    offset: float = 0.0
    seed: int = 0

    @classmethod
    def sample(cls, random: np.random.Generator) -> Microphone:
        """Sample a microphone for training; one caller in five has a perfect one."""
        if random.random() < 0.2:
            return cls(peak=float(random.uniform(-25, -3)))
        far = random.random() < 0.4
        line = str(random.choice(["", "", "", "telephone", "telephone", "opus"])) or None
        noise = TRAINING_NOISES[int(random.integers(len(TRAINING_NOISES)))]
        quiet = random.random() < 0.3
        # Most callers can be understood, though not easily.
        snr = random.uniform(-5, 16) if random.random() < 0.3 else random.uniform(8, 40)
        return cls(
            noise=None if quiet else noise,
            snr=float(snr),
            reverberation=float(random.uniform(0.1, 0.6)) if far else 0.0,
            echo=float(10 ** random.uniform(-2, 0.2)) if far else 0.0,
            curve=tuple(random.normal(0, 4, _KNOTS).tolist()) if random.random() < 0.6 else (),
            top=float(random.uniform(3_500, 10_000)) if random.random() < 0.4 else SAMPLE_RATE / 2,
            line=line,
            peak=float(
                random.uniform(-40, -22) if random.random() < 0.3 else random.uniform(-22, -3)
            ),
            clip=float(-random.uniform(3, 15)) if random.random() < 0.08 else 0.0,
            hum=float(random.uniform(-70, -45)) if random.random() < 0.1 else None,
            offset=float(random.normal(0, 0.01)) if random.random() < 0.15 else 0.0,
            seed=int(random.integers(1 << 31)),
        )

    def record(self, pcm: Pcm, speech: Pcm, random: np.random.Generator) -> Pcm:
        """What arrives of a recording.

        Args:
            pcm: The caller's track.
            speech: The words in it, or words of the same voice: the reference for all levels.
            random: Source of the noise.

        Returns:
            As many samples, from -1 to 1.
        """
        samples = len(pcm)
        loudest = float(np.abs(speech).max()) + 1e-9
        if self.reverberation:
            pcm = self._in_room(pcm)
        if self.noise is not None:
            level = rms(speech) * 10 ** (-self.snr / 20)
            pcm = pcm + level * self.noise(random, samples)
        if self.clip:
            limit = loudest * 10 ** (self.clip / 20)
            pcm = pcm.clip(-limit, limit)
        if self.curve or self.top < SAMPLE_RATE / 2:
            pcm = self._equalised(pcm)
        if self.peak is not None:
            pcm = pcm * (10 ** (self.peak / 20) / loudest)
        if self.line == "telephone":
            pcm = telephone(pcm)
        elif self.line == "opus":
            pcm = opus(pcm)
        if self.hum is not None:
            time = np.arange(samples) / SAMPLE_RATE
            base = 50.0 if self.seed % 2 else 60.0
            tones = sum(np.sin(2 * np.pi * base * k * time + k) / k for k in (1, 2, 3))
            pcm = pcm + 10 ** (self.hum / 20) * tones
        return (pcm + self.offset).clip(-1, 1).astype(np.float32)

    def _in_room(self, pcm: Pcm) -> Pcm:
        random = np.random.default_rng(self.seed)
        count = int(self.reverberation * SAMPLE_RATE)
        time = np.arange(count) / SAMPLE_RATE
        tail = random.standard_normal(count) * 10 ** (-3 * time / self.reverberation)
        tail[: int(0.003 * SAMPLE_RATE)] = 0
        response = tail * np.sqrt(self.echo / np.sum(tail**2))
        response[0] = 1
        heard: Pcm = fftconvolve(pcm, response)[: len(pcm)].astype(np.float32)
        return heard

    def _equalised(self, pcm: Pcm) -> Pcm:
        frequencies = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
        octaves = np.log2(np.maximum(frequencies, 60.0) / 60.0)
        knots = np.linspace(0, octaves[-1], len(self.curve) or 1)
        gains = np.interp(octaves, knots, self.curve or (0.0,))
        # 48 dB per octave above the top.
        gains -= 48 * np.maximum(0, np.log2(np.maximum(frequencies, 1.0) / self.top))
        spectrum = np.fft.rfft(pcm) * 10 ** (gains / 20)
        shaped: Pcm = np.fft.irfft(spectrum, len(pcm)).astype(np.float32)
        return shaped


def heard(
    microphone: Microphone, speech: Pcm, lead: float, samples: int, random: np.random.Generator
) -> Pcm:
    """What the codec receives of words that start after ``lead`` seconds, in ``samples``."""
    track = np.zeros(samples, np.float32)
    add_at(speech, track, int(lead * SAMPLE_RATE))
    return block_dc(microphone.record(track, speech, random))


def block_dc(pcm: Pcm) -> Pcm:
    """The high-pass at 20 Hz that stands before the codec."""
    keep = np.exp(-2 * np.pi * 20 / SAMPLE_RATE)
    passed: Pcm = lfilter([keep, -keep], [1, -keep], pcm).astype(np.float32)
    return passed


def telephone(pcm: Pcm) -> Pcm:
    """Speech over a telephone line: 8 kHz, a narrow band, mu-law."""
    low, high = _TELEPHONE_BAND
    spectrum = np.fft.rfft(pcm)
    frequencies = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    narrow = soxr.resample(np.fft.irfft(spectrum, len(pcm)), SAMPLE_RATE, _TELEPHONE_RATE)
    heard = decode_mulaw(encode_mulaw(narrow.astype(np.float32)))
    return _as_long(soxr.resample(heard, _TELEPHONE_RATE, SAMPLE_RATE), len(pcm))


@cache
def _opus() -> tuple[Any, Any]:
    import opuslib_next

    encoder = opuslib_next.Encoder(SAMPLE_RATE, 1, opuslib_next.APPLICATION_VOIP)
    encoder.bitrate = 16_000
    return encoder, opuslib_next.Decoder(SAMPLE_RATE, 1)


def opus(pcm: Pcm) -> Pcm:
    """Speech over Opus at 16 kbit/s; the codec's delay of 6.5 ms stays."""
    encoder, decoder = _opus()
    blocks = np.zeros(-(-len(pcm) // _OPUS_SAMPLES) * _OPUS_SAMPLES, np.float32)
    blocks[: len(pcm)] = pcm
    samples = (blocks.clip(-1, 1) * 32767).astype(np.int16)
    parts = [
        decoder.decode(encoder.encode(block.tobytes(), _OPUS_SAMPLES), _OPUS_SAMPLES)
        for block in samples.reshape(-1, _OPUS_SAMPLES)
    ]
    heard = np.frombuffer(b"".join(parts), np.int16).astype(np.float32) / 32768
    return _as_long(heard, len(pcm))


def _as_long(pcm: np.ndarray[Any, np.dtype[Any]], samples: int) -> Pcm:
    result = np.zeros(samples, np.float32)
    result[: min(samples, len(pcm))] = pcm[:samples]
    return result
