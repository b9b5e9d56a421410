"""Audio files, read and written as float32 mono 24 kHz, and the loudness of a recording.

The libraries for audio files are imported inside the functions that need them, so that the engine
also runs on machines without them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import Pcm, float_to_pcm16
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import InvalidAudio

if TYPE_CHECKING:
    from av.container import InputContainer

MAX_FILE_SECONDS = 4 * 3600.0
"""Longest audio file that is read unless the caller says otherwise."""
_UNKNOWN_FRAMES = 1 << 62  # libsndfile: the file does not tell its length
_BLOCK_SAMPLES = 1 << 20
# In Hz. A file of a few bytes at 1 Hz would become hours at 24 kHz.
_MIN_RATE, _MAX_RATE = 2_000, 768_000
# Channels whose average has less than this share of the loudest one's energy cancel each other.
_CANCELLED = 1e-3
# The block over which loudness is measured, in seconds (ITU-R BS.1770).
_LOUDNESS_BLOCK_SECONDS = 0.4
# Formats in which files can be joined end to end. libsndfile reads the first of them only.
_JOINABLE = ("OGG", "MP3")
_JOINED_SECONDS = 0.2  # by which FFmpeg's audio is then longer: more than a codec's delay
# Formats that FFmpeg may read: those that hold their audio themselves. A playlist would make it
# open other files and addresses.
_FFMPEG_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,mp3,aac,flac,wav,aiff,asf,amr,"
    "avi,caf,flv,mpegts,ac3,eac3",
    "protocol_whitelist": "none",
}

Block = npt.NDArray[np.float32]
"""Consecutive samples of a file, float32 [n, channels], at the file's rate."""
Blocks = Callable[[], Iterator[Block]]
"""Reads a file from its beginning."""


def read_audio(path: str | Path, *, max_seconds: float = MAX_FILE_SECONDS) -> Pcm:
    """Read the audio of a file as float32 mono 24 kHz [n].

    libsndfile reads WAV, FLAC, Ogg, MP3 and others; FFmpeg (PyAV) reads what it does not know, such
    as m4a, mp4 and webm. Channels are averaged, or, if they cancel each other, the loudest is
    taken. Other sample rates are resampled. The length is bounded while reading.

    Args:
        path: The file.
        max_seconds: Longest duration that is accepted.

    Raises:
        InvalidAudio: The file is missing, unreadable, empty or too long, its sample rate is
            absurd, or its samples are not finite.
    """
    import soundfile
    import soxr

    path = Path(path)
    if not path.exists():
        raise InvalidAudio(f"audio file {path} does not exist")
    if not path.is_file():
        raise InvalidAudio(f"audio file {path} is not a regular file")
    try:
        # A file object: libsndfile cannot open every name that the system allows.
        with path.open("rb") as data:
            try:
                pcm, rate = _read_with_libsndfile(data, path, max_seconds)
            except soundfile.LibsndfileError as error:
                data.seek(0)
                pcm, rate = _read_with_ffmpeg(data, path, max_seconds, error.error_string)
    except OSError as error:
        raise InvalidAudio(f"audio file {path} cannot be read: {error.strerror}") from None
    except TypeError:  # of soundfile, for a name that ends in .raw
        raise InvalidAudio(f"audio file {path} has no header; convert it to WAV") from None
    if not np.isfinite(pcm).all():
        raise InvalidAudio(f"audio file {path} contains samples that are not finite")
    if rate != SAMPLE_RATE and pcm.size:
        pcm = soxr.resample(pcm, rate, SAMPLE_RATE, quality="HQ")
    if not pcm.size:
        raise InvalidAudio(f"audio file {path} contains no samples at {SAMPLE_RATE} Hz")
    return pcm


def _read_with_libsndfile(data: IO[bytes], path: Path, max_seconds: float) -> tuple[Pcm, int]:
    import soundfile

    with soundfile.SoundFile(data) as file:

        def blocks() -> Iterator[Block]:
            file.seek(0)
            frames = max(1, _BLOCK_SAMPLES // file.channels)
            while len(block := file.read(frames, dtype="float32", always_2d=True)):
                yield block

        rate = int(file.samplerate)
        if not 0 < file.frames < _UNKNOWN_FRAMES:
            # A streamed FLAC, or a WAV whose recorder was killed before it wrote the length.
            data.seek(0)
            return _read_with_ffmpeg(data, path, max_seconds, "it contains no samples")
        _check_size(file.frames, rate, path, max_seconds)
        read = _mono(blocks, rate, path, max_seconds), rate
        joinable = file.format in _JOINABLE
    return _whole(read, data, path, max_seconds) if joinable else read


def _whole(
    read: tuple[Pcm, int], data: IO[bytes], path: Path, max_seconds: float
) -> tuple[Pcm, int]:
    """What libsndfile has read of a joinable file, or FFmpeg's audio if there is more of it."""
    import av

    pcm, rate = read
    with suppress(av.FFmpegError, ValueError):
        data.seek(0)
        more, its_rate = _ffmpeg_audio(data, path, max_seconds)
        if len(more) / its_rate > len(pcm) / rate + _JOINED_SECONDS:
            return more, its_rate
    return read


def _read_with_ffmpeg(
    data: IO[bytes], path: Path, max_seconds: float, reason: str
) -> tuple[Pcm, int]:
    """Read what libsndfile refused for ``reason``."""
    import av

    try:
        return _ffmpeg_audio(data, path, max_seconds)
    except (av.FFmpegError, ValueError):  # ValueError: channels or rate change within the file
        raise InvalidAudio(f"audio file {path} cannot be read: {reason}") from None


def _ffmpeg_audio(data: IO[bytes], path: Path, max_seconds: float) -> tuple[Pcm, int]:
    import av

    with av.open(data, mode="r", options=_FFMPEG_OPTIONS) as container:
        if not container.streams.audio:
            raise InvalidAudio(f"audio file {path} contains no audio")
        rate = int(container.streams.audio[0].rate)
        return _mono(lambda: _decoded(container), rate, path, max_seconds), rate


def _decoded(container: InputContainer) -> Iterator[Block]:
    import av

    container.seek(0)
    planar = av.AudioResampler(format="fltp")  # keeps rate and channels
    for frame in container.decode(audio=0):
        for converted in planar.resample(frame):
            block: Block = converted.to_ndarray().T.astype(np.float32, copy=False)
            yield block


def _mono(blocks: Blocks, rate: int, path: Path, max_seconds: float) -> Pcm:
    """Mix all channels to one [n]; the memory is that of one channel.

    Raises:
        InvalidAudio: The file is longer than ``max_seconds``, or its sample rate is absurd.
    """
    parts: list[Pcm] = []
    energies = np.zeros(1)
    length = 0
    for block in blocks():
        length += len(block)
        _check_size(length, rate, path, max_seconds)
        parts.append(block.mean(axis=1))
        energies = energies + np.square(block, dtype=np.float64).sum(axis=0)
    pcm = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    parts.clear()
    loudest = int(energies.argmax())
    if float(pcm @ pcm) < _CANCELLED * energies[loudest]:
        pcm = np.concatenate([block[:, loudest] for block in blocks()])
    return pcm


def _check_size(frames: int, rate: int, path: Path, max_seconds: float) -> None:
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise InvalidAudio(
            f"audio file {path} has a sample rate of {rate} Hz; {_MIN_RATE} to {_MAX_RATE} Hz are "
            "accepted"
        )
    if frames > max_seconds * rate:
        raise InvalidAudio(
            f"audio file {path} lasts {frames / rate:.0f} s or more; at most {max_seconds:g} s are "
            "accepted"
        )


def write_wav(path: str | Path, pcm: Pcm) -> None:
    """Write 24 kHz samples, mono [n] or stereo [n, 2], as a 16-bit WAV file.

    Raises:
        InvalidAudio: The file cannot be written.
    """
    import soundfile

    # In memory first: libsndfile does not report a full disk.
    encoded = io.BytesIO()
    soundfile.write(encoded, float_to_pcm16(pcm), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    try:
        Path(path).write_bytes(encoded.getbuffer())
    except OSError as error:
        reason = error.strerror or error
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
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(pcm)
    if not np.isfinite(loudness):
        what = "silent; record the voice louder" if np.abs(pcm).max() < 1 else "far too loud"
        raise InvalidAudio(f"the recording is {what}")
    gain = 10 ** ((lufs - loudness) / 20)
    normalized: Pcm = (pcm * gain).astype(np.float32)
    return normalized
