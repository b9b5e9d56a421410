from __future__ import annotations

import numpy as np
import pytest

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.service.caller_speech import CallerSpeech, is_speech

CHUNK = SAMPLE_RATE // 50
QUIET = np.full(CHUNK, 0.001, dtype=np.float32)
LOUD = np.full(CHUNK, 0.1, dtype=np.float32)


def reached(caller: CallerSpeech, chunk: np.ndarray, seconds: float) -> list[float]:
    """When the caller has spoken for long enough, in seconds from the start of these chunks."""
    count = round(seconds * 50)
    return [(index + 1) / 50 for index in range(count) if caller.push(chunk)]


@pytest.mark.parametrize(("level", "expected"), [(0.0, False), (0.005, False), (0.05, True)])
def test_loudness_tells_speech_from_noise(level: float, expected: bool) -> None:
    assert is_speech(np.full(FRAME_SAMPLES, level, dtype=np.float32)) is expected


def test_loud_audio_interrupts_once_after_a_quarter_of_a_second() -> None:
    caller = CallerSpeech()
    assert reached(caller, QUIET, 1.0) == []
    assert reached(caller, LOUD, 5.0) == [pytest.approx(0.24, abs=0.081)]
    assert reached(caller, QUIET, 0.4) == []
    assert len(reached(caller, LOUD, 1.0)) == 1


def test_a_short_noise_does_not_interrupt() -> None:
    caller = CallerSpeech()
    for _ in range(10):
        assert reached(caller, LOUD, 0.16) == []
        assert reached(caller, QUIET, 0.24) == []


def test_a_detector_decides_once_it_has_reported() -> None:
    caller = CallerSpeech()
    caller.vad(False)
    assert reached(caller, LOUD, 1.0) == []
    caller.vad(True)
    assert reached(caller, QUIET, 1.0) == [0.24]
    caller.vad(True)  # the user's turn, after the detector's report
    assert reached(caller, QUIET, 1.0) == []
    caller.vad(False)
    assert reached(caller, LOUD, 1.0) == []
    caller.vad(True, 0.2)
    assert reached(caller, QUIET, 1.0) == [0.04]
    caller.vad(False)
    caller.vad(True, 0.5)
    assert reached(caller, QUIET, 1.0) == [0.02]
