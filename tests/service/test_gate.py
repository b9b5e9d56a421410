from __future__ import annotations

import numpy as np

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.service.audio import NoiseGate


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


def test_the_tail_of_a_word_is_held_and_faded():
    gate = NoiseGate(-50.0)
    gate.process(noise(-30))
    tail = noise(-60)
    results = [gate.process(tail) for _ in range(4)]
    assert [silent for _, silent in results] == [False, False, False, True]
    np.testing.assert_array_equal(results[1][0], tail)
    assert results[2][0][-1] == 0 and results[2][0][0] == tail[0]
    assert tail[-1] != 0, "the caller's array is left alone"


def test_a_short_onset_opens_the_whole_frame():
    gate = NoiseGate(-50.0)
    onset = noise(-70)
    onset[-200:] = noise(-35, 200)
    heard, silent = gate.process(onset)
    assert not silent
    np.testing.assert_array_equal(heard, onset)


def test_absolute_silence_is_fine():
    assert NoiseGate(-50.0).process(np.zeros(FRAME_SAMPLES, np.float32))[1]
