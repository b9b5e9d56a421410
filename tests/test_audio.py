"""Audio: frames and sample formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipecat_personaplex.audio import (
    FrameBuffer,
    SpeechDetector,
    float_to_pcm16,
    is_audible,
    pcm16_to_float,
)
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import FRAME_SAMPLES
from tests.golden_data import VOICE_SAMPLE

RATE = 24_000


def tone(seconds: float, rate: int = RATE, hertz: float = 440, peak: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


CHUNK_SIZES = st.lists(st.integers(0, 3 * FRAME_SAMPLES), max_size=8)


def ramp(samples: int, start: int = 0) -> np.ndarray:
    """Samples that count up, so that each one is recognised."""
    return np.arange(start, start + samples, dtype=np.float32)


def chunks_of(pcm: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(pcm, np.cumsum(sizes))[: len(sizes)]


@given(CHUNK_SIZES)
def test_any_chunking_gives_the_same_frames(sizes: list[int]) -> None:
    pcm = ramp(sum(sizes))
    buffer = FrameBuffer()
    frames: list[np.ndarray] = []
    for chunk in chunks_of(pcm, sizes):
        expected = buffer.completed_by(len(chunk))
        new = buffer.push(chunk)
        assert len(new) == expected
        frames += new
    whole = len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES
    assert [frame.shape for frame in frames] == [(FRAME_SAMPLES,)] * (whole // FRAME_SAMPLES)
    np.testing.assert_array_equal(np.concatenate([*frames, ramp(0)]), pcm[:whole])
    assert buffer.partial_samples == len(pcm) - whole


@given(CHUNK_SIZES)
def test_frames_do_not_change_after_later_pushes(sizes: list[int]) -> None:
    buffer = FrameBuffer()
    frames = [frame for chunk in chunks_of(ramp(sum(sizes)), sizes) for frame in buffer.push(chunk)]
    before = [frame.copy() for frame in frames]
    buffer.push(np.full(2 * FRAME_SAMPLES - 1, -1, np.float32))
    np.testing.assert_array_equal(frames, before)


def test_a_chunk_of_one_frame_is_not_copied() -> None:
    buffer = FrameBuffer()
    pcm = ramp(FRAME_SAMPLES)
    (frame,) = buffer.push(pcm)
    assert frame is pcm and buffer.partial_samples == 0
    buffer.push(ramp(1))
    (frame,) = buffer.push(pcm)  # not aligned with the frames: copied
    assert not np.shares_memory(frame, pcm)


@given(st.integers(0, 2 * FRAME_SAMPLES), st.integers(1, 3), st.integers(0, 2 * FRAME_SAMPLES))
def test_skip_discards_the_next_frames(before: int, skipped: int, after: int) -> None:
    buffer = FrameBuffer()
    first = buffer.push(ramp(before))
    omitted = buffer.skip(skipped)
    assert buffer.partial_samples == 0
    start = (len(first) + skipped) * FRAME_SAMPLES
    assert before + omitted == start
    kept = buffer.push(ramp(after, start))
    expected = ramp(after // FRAME_SAMPLES * FRAME_SAMPLES, start)
    np.testing.assert_array_equal(np.concatenate([*kept, ramp(0)]), expected)


def test_pcm16_converts_as_soundfile_does() -> None:
    samples, _ = soundfile.read(VOICE_SAMPLE, dtype="int16")
    expected, _ = soundfile.read(VOICE_SAMPLE, dtype="float32")
    np.testing.assert_array_equal(pcm16_to_float(samples), expected)


@given(arrays(np.int16, st.integers(0, 50)))
def test_pcm16_survives_the_round_trip(samples: np.ndarray) -> None:
    as_float = pcm16_to_float(samples)
    assert as_float.dtype == np.float32
    np.testing.assert_array_equal(float_to_pcm16(as_float), samples)


def test_float_samples_are_rounded_and_clipped() -> None:
    samples = np.array([0.6 / 32768, -0.6 / 32768, 1, -1, 7, -7, np.inf], np.float32)
    assert float_to_pcm16(samples).tolist() == [1, -1, 32767, -32768, 32767, -32768, 32767]


MENU_QUESTION = Path(__file__).parent / "bots" / "data" / "what_is_on_the_menu.flac"


def noise(frames: int, rms: float) -> np.ndarray:
    samples = np.random.default_rng(1).normal(0, rms, frames * FRAME_SAMPLES)
    return samples.astype(np.float32)


def speaking(pcm: np.ndarray) -> list[bool]:
    """What a detector says of each whole frame."""
    detector = SpeechDetector()
    states = []
    for frame in pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES):
        detector.push(frame)
        states.append(detector.speaking)
    return states


def question(before: int, after: int) -> tuple[np.ndarray, int]:
    """A spoken question between frames of silence, and its length in frames."""
    words = read_audio(MENU_QUESTION)
    frames = len(words) // FRAME_SAMPLES
    silence = np.zeros
    pcm = np.concatenate(
        [
            silence(before * FRAME_SAMPLES, np.float32),
            words[: frames * FRAME_SAMPLES],
            silence(after * FRAME_SAMPLES, np.float32),
        ]
    )
    return pcm, frames


@pytest.mark.parametrize("offset", [0.0, 0.005, -0.3])
@pytest.mark.parametrize("hiss", [0.0, 0.001, 0.01])
def test_speech_is_detected_in_noise_and_with_a_dc_offset(offset: float, hiss: float) -> None:
    pcm, frames = question(before=40, after=40)
    pcm += offset + noise(80 + frames, hiss)
    states = speaking(pcm)
    assert not any(states[:40])
    assert all(states[43 : 40 + frames - 3])
    assert not any(states[40 + frames + 4 :])


@pytest.mark.parametrize("level", [0.0, 0.002, 0.02, 0.2])
def test_steady_noise_is_no_speech(level: float) -> None:
    assert not any(speaking(noise(60, level)))
    quiet = np.zeros(5 * FRAME_SAMPLES, np.float32)
    states = speaking(np.concatenate([quiet, noise(60, level)]))
    assert any(states) == (level > 0.003)
    assert not any(states[5 + 28 :])  # noise that starts is speech for 2 s and the hangover


def test_a_gap_between_words_is_speech_and_a_pause_is_not() -> None:
    gap, pause = np.zeros((2, 3 * FRAME_SAMPLES), np.float32), np.zeros((2, 9 * FRAME_SAMPLES))
    word = tone(0.32)
    parts = [gap[1], word, gap[0], word, pause[0].astype(np.float32)]
    states = speaking(np.concatenate(parts))
    assert states == [False] * 3 + [True] * (4 + 3 + 4 + 3) + [False] * 6


def test_a_detector_that_was_not_read_knows_the_last_two_seconds() -> None:
    pcm, frames = question(before=40, after=0)
    detector, read = SpeechDetector(), SpeechDetector()
    for frame in (pcm + noise(40 + frames, 0.01)).reshape(-1, FRAME_SAMPLES)[:50]:
        detector.push(frame)
        read.push(frame)
        expected = read.speaking
    assert detector.speaking == expected is True


def test_an_audible_frame_has_20_ms_above_the_silence() -> None:
    frame = noise(1, 0.001)
    assert not is_audible(frame)
    frame[480:960] = tone(0.02, peak=0.05)
    assert is_audible(frame)
