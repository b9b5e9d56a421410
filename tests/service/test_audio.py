from __future__ import annotations

import numpy as np
import pytest

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.service.audio import NoiseGate, StreamResampler


def noise(dbfs: float, samples: int = FRAME_SAMPLES) -> np.ndarray:
    return (10 ** (dbfs / 20) * np.random.default_rng(0).standard_normal(samples)).astype(
        np.float32
    )


def test_noise_becomes_zeros_and_speech_passes():
    gate = NoiseGate(-50.0)
    quiet, silent = gate.process(noise(-60))
    assert silent and not quiet.any()
    loud = noise(-30)
    heard, silent = gate.process(loud)
    assert not silent
    np.testing.assert_array_equal(heard, loud)


def test_the_gate_stays_open_for_the_tail_of_a_word_and_fades_it():
    gate = NoiseGate(-50.0)
    gate.process(noise(-30))
    tail = noise(-60)
    results = [gate.process(tail) for _ in range(4)]
    assert [silent for _, silent in results] == [False, False, False, True]
    np.testing.assert_array_equal(results[1][0], tail)
    assert results[2][0][-1] == 0 and results[2][0][0] == tail[0]
    assert tail[-1] != 0, "the input is not modified"


def test_a_short_onset_opens_the_whole_frame():
    gate = NoiseGate(-50.0)
    onset = noise(-70)
    onset[-200:] = noise(-35, 200)
    heard, silent = gate.process(onset)
    assert not silent
    np.testing.assert_array_equal(heard, onset)


def test_zeros_are_silent():
    assert NoiseGate(-50.0).process(np.zeros(FRAME_SAMPLES, np.float32))[1]


def sine(rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * 300 * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_resampling_keeps_the_signal_with_2_ms_of_delay(rate: int):
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
def test_80_ms_in_give_80_ms_out(rate: int):
    resampler = StreamResampler(SAMPLE_RATE, rate)
    for _ in range(20):
        assert len(resampler.push(np.zeros(FRAME_SAMPLES, np.float32))) == rate * 80 // 1000


def test_equal_rates_return_the_input():
    pcm = sine(SAMPLE_RATE, 0.1)
    assert StreamResampler(SAMPLE_RATE, SAMPLE_RATE).push(pcm) is pcm


def test_an_empty_chunk_stays_empty():
    assert len(StreamResampler(8_000, SAMPLE_RATE).push(np.zeros(0, np.float32))) == 0
