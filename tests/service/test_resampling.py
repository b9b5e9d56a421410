from __future__ import annotations

import numpy as np
import pytest

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.service.audio import StreamResampler


def sine(rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * 300 * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_stream_comes_out_in_time_and_in_shape(rate: int):
    resampler = StreamResampler(rate, SAMPLE_RATE)
    source = sine(rate, 1.0)
    chunk = rate // 50
    pieces = [resampler.push(source[i : i + chunk]) for i in range(0, len(source), chunk)]
    assert {len(piece) for piece in pieces} == {SAMPLE_RATE // 50}
    result = np.concatenate(pieces)
    expected = sine(SAMPLE_RATE, 1.0)
    errors = [
        np.abs(result[delay + 480 : 20_000 + delay] - expected[480:20_000]).max()
        for delay in range(60)
    ]
    assert min(errors) < 0.02
    assert int(np.argmin(errors)) <= 0.002 * SAMPLE_RATE + 1


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_eighty_milliseconds_stay_eighty_milliseconds(rate: int):
    resampler = StreamResampler(SAMPLE_RATE, rate)
    for _ in range(20):
        assert len(resampler.push(np.zeros(FRAME_SAMPLES, np.float32))) == rate * 80 // 1000


def test_the_same_rate_is_left_alone():
    pcm = sine(SAMPLE_RATE, 0.1)
    assert StreamResampler(SAMPLE_RATE, SAMPLE_RATE).push(pcm) is pcm


def test_no_samples_are_no_samples():
    assert len(StreamResampler(8_000, SAMPLE_RATE).push(np.zeros(0, np.float32))) == 0
