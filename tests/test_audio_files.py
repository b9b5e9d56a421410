"""Audio files whose size, channels or names are unusual."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_personaplex.audio import read_audio, write_wav
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import InvalidAudio


def silent_flac(path: Path, seconds: int, channels: int) -> Path:
    """Write a long file block by block; silence compresses to almost nothing."""
    block = np.zeros((SAMPLE_RATE, channels), np.int16)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, channels, format="FLAC") as file:
        for _ in range(seconds):
            file.write(block)
    return path


def test_a_recording_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = silent_flac(tmp_path / "long.flac", 600, 8)
    tracemalloc.start()
    with pytest.raises(InvalidAudio, match=r"lasts 600 s; at most 240 s are accepted"):
        read_audio(path, max_seconds=240)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_memory_of_a_long_file_is_that_of_one_channel(tmp_path: Path) -> None:
    path = silent_flac(tmp_path / "long.flac", 300, 8)
    tracemalloc.start()
    pcm = read_audio(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pcm) == 300 * SAMPLE_RATE
    assert peak < 2 * pcm.nbytes + (32 << 20)  # all channels would be 8 times as much


@pytest.mark.parametrize("gain", [-1.0, -0.999])
def test_channels_that_cancel_each_other_are_not_silence(tmp_path: Path, gain: float) -> None:
    left = (0.25 * np.sin(np.arange(SAMPLE_RATE) / 20)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, gain * left], 1), SAMPLE_RATE, "FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav"), left)


def test_channels_are_averaged_as_before(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (SAMPLE_RATE, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE, "FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav"), samples.mean(axis=1))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    write_wav(path, np.full(SAMPLE_RATE, 0.5, np.float32))
    assert len(read_audio(path)) == SAMPLE_RATE
