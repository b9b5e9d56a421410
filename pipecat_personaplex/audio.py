"""PCM audio, mono 24 kHz float32 from -1 to 1: as frames and as 16-bit samples."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import InvalidAudio

Pcm = npt.NDArray[np.float32]
"""Samples, float32 [n], mono, 24 kHz, -1 to 1."""

# A power of two, so that 16-bit samples convert to float32 and back without an error.
_PCM16_SCALE = 32_768
AUDIBLE_RMS = 0.008
"""RMS of 20 ms of an agent's audio, above the codec's silence and below quiet speech (-42 dBFS)."""

_HOPS = 4  # 20 ms each, in a frame
# A frame of a caller is speech if its RMS is at least this, -50 dBFS, ...
_SPEECH_RMS = 0.003
# ... and 6 dB above the quietest of the last 2 s, within which a speaker pauses between words.
_SPEECH_RATIO = 2.0
_FLOOR_FRAMES = 25
# A caller speaks until 0.32 s after the last such frame, so that gaps between words count.
_HANGOVER_FRAMES = 4


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


def is_audible(frame: Pcm) -> bool:
    """Whether a frame of an agent's audio, float32 [1920], is louder than the codec's silence."""
    hops = frame.reshape(_HOPS, -1)  # [4, 480]
    energies = np.einsum("ij,ij->i", hops, hops)
    return bool(energies.max() > AUDIBLE_RMS**2 * hops.shape[1])


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A complete input frame that waits for its step.

    Attributes:
        pcm: float32 [1920], mono, 24 kHz, -1 to 1.
        arrived: When its last sample arrived, in monotonic seconds.
    """

    pcm: Pcm
    arrived: float


def checked_pcm(pcm: Pcm) -> Pcm:
    """Validate audio and return a copy, clipped to -1 to 1.

    Args:
        pcm: float32 [n], mono, 24 kHz.

    Raises:
        InvalidAudio: As ``require_pcm``.
    """
    require_pcm(pcm)
    return np.clip(pcm, -1.0, 1.0)


def require_pcm(pcm: Pcm) -> None:
    """Validate audio: float32 [n], mono, 24 kHz.

    Raises:
        InvalidAudio: The audio is not finite float32 mono.
    """
    if not isinstance(pcm, np.ndarray) or pcm.dtype != np.float32 or pcm.ndim != 1:
        got = (
            f"{pcm.dtype} {list(pcm.shape)}" if isinstance(pcm, np.ndarray) else type(pcm).__name__
        )
        raise InvalidAudio(
            f"audio must be a float32 numpy array of one dimension (mono, 24 kHz, -1 to 1), not "
            f"{got}; for 16-bit samples use pipecat_personaplex.audio.pcm16_to_float"
        )
    bad = pcm.size - int(np.count_nonzero(np.isfinite(pcm)))
    if bad:
        raise InvalidAudio(f"{bad} of {pcm.size} samples are NaN or infinite")


class InputQueue:
    """The input frames of one session that wait for their step; safe for use from any thread.

    The queue is bounded. If a frame arrives and the queue is full, the oldest frame is dropped and
    counted: a client that sends faster than its frames are processed loses sound and gains no
    delay.

    Args:
        max_frames: Complete frames (80 ms each) that may wait.

    Example::

        queue = InputQueue(max_frames=25)
        if queue.push(checked_pcm(pcm), time.monotonic()):
            frame = queue.take()
    """

    def __init__(self, max_frames: int):
        self._max_frames = max_frames
        self._lock = threading.Lock()
        self._buffer = FrameBuffer()
        self._frames: deque[QueuedFrame] = deque()
        self._dropped = 0

    @property
    def has_frame(self) -> bool:
        """Whether a complete frame waits. Takes no lock."""
        return bool(self._frames)

    @property
    def queued(self) -> int:
        """Complete frames that wait. Takes no lock."""
        return len(self._frames)

    @property
    def dropped(self) -> int:
        """Frames dropped so far because the queue was full. Takes no lock."""
        return self._dropped

    def push(self, pcm: Pcm, now: float) -> bool:
        """Append samples and queue the frames that they complete.

        Args:
            pcm: Valid samples, see ``checked_pcm``: float32 [n]. A chunk of exactly one frame may
                be queued without a copy, so the caller must not change it afterwards.
            now: Monotonic seconds; the arrival time of these frames.

        Returns:
            Whether at least one frame was queued.
        """
        with self._lock:
            excess = self._buffer.completed_by(len(pcm)) - self._max_frames
            if excess > 0:
                # More than the whole queue: skip what would be dropped instead of cutting it.
                pcm = pcm[self._buffer.skip(excess) :]
                self._dropped += excess
            frames = self._buffer.push(pcm)
            self._frames.extend(QueuedFrame(frame, now) for frame in frames)
            while len(self._frames) > self._max_frames:
                self._frames.popleft()
                self._dropped += 1
            return bool(frames)

    def take(self) -> QueuedFrame | None:
        """Remove and return the oldest frame; None if no complete frame waits."""
        with self._lock:
            return self._frames.popleft() if self._frames else None


class SpeechDetector:
    """Detects in which frames a caller speaks: by level, against the noise of the last 2 s.

    A frame's level is its RMS without its mean, so that a DC offset is not sound. The noise floor
    is the lowest level of the last 2 s. Noise that starts suddenly therefore counts as speech for
    up to 2 s, and so does any other sound that rises and falls; a caller who speaks from the first
    frame on counts from the first gap between words on. The result decides when an agent gives way,
    not what it hears.

    Levels are computed when ``speaking`` is read: a detector that only collects frames costs almost
    nothing.

    Args:
        hangover_frames: Frames for which the caller counts as speaking from a loud one on; 1 for
            this frame alone.

    Example::

        detector = SpeechDetector()
        for frame in frames:  # float32 [1920] each
            detector.push(frame)
            if detector.speaking:
                print("the caller speaks")
    """

    def __init__(self, hangover_frames: int = _HANGOVER_FRAMES):
        self._hangover_frames = hangover_frames
        self._new: deque[Pcm] = deque(maxlen=_FLOOR_FRAMES)  # frames without a level yet
        self._levels: deque[float] = deque(maxlen=_FLOOR_FRAMES)

    def push(self, frame: Pcm) -> None:
        """Add the next frame, float32 [1920]; it must not change afterwards."""
        self._new.append(frame)

    @property
    def speaking(self) -> bool:
        """Whether the caller speaks in the newest frame."""
        while self._new:
            self._levels.append(_level(self._new.popleft()))
        if not self._levels:
            return False
        loudest = max(list(self._levels)[-self._hangover_frames :])
        return loudest >= max(_SPEECH_RMS, _SPEECH_RATIO * min(self._levels))


def _level(frame: Pcm) -> float:
    """RMS of a frame around its mean."""
    mean = float(frame.sum()) / len(frame)
    return math.sqrt(max(0.0, float(frame @ frame) / len(frame) - mean * mean))


def pcm16_to_float(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """Convert 16-bit samples of any shape to float32, from -1 to just below 1."""
    return samples.astype(np.float32) / np.float32(_PCM16_SCALE)


def float_to_pcm16(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """Convert float samples of any shape to 16-bit: rounded, and clipped to full scale."""
    scaled = np.rint(samples * _PCM16_SCALE).clip(-_PCM16_SCALE, _PCM16_SCALE - 1)
    pcm16: npt.NDArray[np.int16] = scaled.astype(np.int16)
    return pcm16
