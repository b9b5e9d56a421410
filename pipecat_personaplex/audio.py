"""PCM audio, mono 24 kHz float32 from -1 to 1: as frames, as 16-bit samples, and in files.

The libraries for audio files are imported inside the functions that need them, so that the engine
also runs on machines without them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.errors import InvalidAudio

Pcm = npt.NDArray[np.float32]
"""Samples, float32 [n], mono, 24 kHz, -1 to 1."""

# A power of two, so that 16-bit samples convert to float32 and back without an error.
_PCM16_SCALE = 32_768
# The block over which loudness is measured, in seconds (ITU-R BS.1770).
_LOUDNESS_BLOCK_SECONDS = 0.4


class FrameBuffer:
    """Cuts a stream of audio chunks of any length into frames of 1,920 samples (80 ms).

    Example::

        buffer = FrameBuffer()
        for frame in buffer.push(pcm):
            session.push(frame)
    """

    def __init__(self) -> None:
        self._partial = np.empty(FRAME_SAMPLES, dtype=np.float32)
        self._size = 0

    @property
    def partial_samples(self) -> int:
        """Samples of the incomplete frame, 0 to 1,919."""
        return self._size

    def completed_by(self, samples: int) -> int:
        """Return how many frames a chunk of this many samples would complete."""
        return (self._size + samples) // FRAME_SAMPLES

    def push(self, pcm: Pcm) -> list[Pcm]:
        """Add a chunk and return the frames that are now complete.

        Args:
            pcm: float32 [n] mono 24 kHz. A chunk that is exactly one frame is returned without a
                copy, so the caller must not change it afterwards.

        Returns:
            Frames, float32 [1920] each, in order.
        """
        if not self._size and len(pcm) == FRAME_SAMPLES:
            return [pcm]  # the usual case in a call
        frames: list[Pcm] = []
        start = 0
        while start < len(pcm):
            count = min(FRAME_SAMPLES - self._size, len(pcm) - start)
            end = self._size + count
            self._partial[self._size : end] = pcm[start : start + count]
            self._size = end % FRAME_SAMPLES
            start += count
            if end == FRAME_SAMPLES:
                frames.append(self._partial.copy())
        return frames

    def skip(self, frames: int) -> int:
        """Discard the next frames of the stream, the incomplete one first.

        Args:
            frames: Number of frames, at least 1.

        Returns:
            Number of samples that the caller must leave out at the start of the next chunk: they
            belong to the discarded frames.
        """
        samples = frames * FRAME_SAMPLES - self._size
        self._size = 0
        return samples


def pcm16_to_float(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Convert 16-bit samples of any shape to float32, from -1 to just below 1."""
    return samples.astype(np.float32) / np.float32(_PCM16_SCALE)


def float_to_pcm16(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Convert float samples of any shape to 16-bit: rounded, and clipped to full scale."""
    scaled = np.rint(samples * _PCM16_SCALE).clip(-_PCM16_SCALE, _PCM16_SCALE - 1)
    pcm16: npt.NDArray[np.int16] = scaled.astype(np.int16)
    return pcm16


def read_audio(path: str | Path) -> Pcm:
    """Read an audio file of any format that libsndfile supports, as float32 mono 24 kHz [n].

    Channels are averaged; other sample rates are resampled.

    Raises:
        InvalidAudio: The file is missing, unreadable or empty, or its samples are not finite.
    """
    import soundfile
    import soxr

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
        raise InvalidAudio(f"audio file {path} contains samples that are not finite")
    if rate != SAMPLE_RATE and pcm.size:
        pcm = soxr.resample(pcm, rate, SAMPLE_RATE, quality="HQ")
    if not pcm.size:
        raise InvalidAudio(f"audio file {path} contains no samples at {SAMPLE_RATE} Hz")
    return pcm


def write_wav(path: str | Path, pcm: Pcm) -> None:
    """Write mono 24 kHz samples [n] as a 16-bit WAV file.

    Raises:
        InvalidAudio: The file cannot be written.
    """
    import soundfile

    try:
        soundfile.write(path, float_to_pcm16(pcm), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise InvalidAudio(f"audio file {path} cannot be written: {reason}") from None


def normalize_loudness(pcm: Pcm, lufs: float = -24.0) -> Pcm:
    """Scale a recording to an integrated loudness (ITU-R BS.1770).

    Args:
        pcm: float32 [n], mono, 24 kHz.
        lufs: Target loudness.

    Returns:
        float32 [n]; the peaks of a quiet recording may exceed 1.

    Raises:
        InvalidAudio: The recording is too short to measure, or silent.
    """
    import pyloudnorm

    if pcm.shape[0] < _LOUDNESS_BLOCK_SECONDS * SAMPLE_RATE:
        raise InvalidAudio(
            f"the recording lasts {pcm.shape[0] / SAMPLE_RATE:.2f} s; loudness needs at least "
            f"{_LOUDNESS_BLOCK_SECONDS} s"
        )
    # If every block is below the meter's gate, the loudness is minus infinity, and numpy warns
    # about the logarithm of zero.
    with np.errstate(divide="ignore", invalid="ignore"):
        loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(pcm)
    if not np.isfinite(loudness):
        raise InvalidAudio("the recording is silent; record the voice louder")
    gain = 10 ** ((lufs - loudness) / 20)
    normalized: Pcm = (pcm * gain).astype(np.float32)
    return normalized
