"""PCM in and out of files: mono, 24 kHz, float32 from -1 to 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyloudnorm
import soundfile
import soxr

from pipecat_personaplex.config import SAMPLE_RATE
from pipecat_personaplex.errors import InvalidAudio

Pcm = npt.NDArray[np.float32]
"""Samples [n], mono, 24 kHz, -1 to 1."""

# A power of two: a 16-bit sample is exact in float32, both ways.
_PCM16_SCALE = 32_768
# The block over which loudness is measured (ITU-R BS.1770).
_LOUDNESS_BLOCK = 0.4


def pcm16_to_float(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """16-bit samples of any shape as float32 from -1 to (just under) 1."""
    return samples.astype(np.float32) / np.float32(_PCM16_SCALE)


def float_to_pcm16(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Float samples of any shape as 16-bit, rounded; what is too loud is clipped."""
    scaled = np.rint(samples * _PCM16_SCALE).clip(-_PCM16_SCALE, _PCM16_SCALE - 1)
    pcm16: npt.NDArray[np.int16] = scaled.astype(np.int16)
    return pcm16


def read_audio(path: str | Path) -> Pcm:
    """Read any file that libsndfile knows, as float32 mono 24 kHz.

    Channels are averaged; other rates are resampled.

    Raises:
        InvalidAudio: The file is missing, unreadable or empty, or its samples are not finite.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidAudio(f"audio file {path} does not exist")
    if not path.is_file():
        raise InvalidAudio(f"audio file {path} is not a regular file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise InvalidAudio(f"audio file {path} cannot be read: {reason}") from None
    pcm: Pcm = samples.mean(axis=1)
    if not np.isfinite(pcm).all():
        raise InvalidAudio(f"audio file {path} holds samples that are not finite")
    if rate != SAMPLE_RATE and pcm.size:
        pcm = soxr.resample(pcm, rate, SAMPLE_RATE, quality="HQ")
    if not pcm.size:
        raise InvalidAudio(f"audio file {path} holds no samples at {SAMPLE_RATE} Hz")
    return pcm


def write_wav(path: str | Path, pcm: Pcm) -> None:
    """Write mono 24 kHz samples as a 16-bit WAV file.

    Raises:
        InvalidAudio: The file cannot be written.
    """
    try:
        soundfile.write(path, float_to_pcm16(pcm), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise InvalidAudio(f"audio file {path} cannot be written: {reason}") from None


def normalize_loudness(pcm: Pcm, lufs: float = -24.0) -> Pcm:
    """Scale a recording to an integrated loudness (ITU-R BS.1770).

    Args:
        pcm: float32 mono 24 kHz.
        lufs: The loudness wanted.

    Returns:
        float32; samples may pass 1 where a quiet recording has sharp peaks.

    Raises:
        InvalidAudio: The recording is too short to measure, or silent.
    """
    if pcm.shape[0] < _LOUDNESS_BLOCK * SAMPLE_RATE:
        raise InvalidAudio(
            f"the recording lasts {pcm.shape[0] / SAMPLE_RATE:.2f} s; loudness needs at least "
            f"{_LOUDNESS_BLOCK} s"
        )
    # Blocks that are all below the gate have no loudness: the meter says minus infinity, and
    # numpy warns of the logarithm on the way.
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(pcm)
    if not np.isfinite(loudness):
        raise InvalidAudio("the recording is silent; record the voice louder")
    gain = 10 ** ((lufs - loudness) / 20)
    normalized: Pcm = (pcm * gain).astype(np.float32)
    return normalized
