from __future__ import annotations

import numpy as np
import pytest

from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.service.caller_speech import CallerSpeech

CHUNK = SAMPLE_RATE // 50
LOUD = np.where(np.arange(CHUNK) % 2, 0.1, -0.1).astype(np.float32)
QUIET = LOUD / 100


def reached(caller: CallerSpeech, chunk: np.ndarray, seconds: float) -> list[float]:
    """When the caller has spoken for long enough, in seconds from the start of these chunks."""
    count = round(seconds * 50)
    return [(index + 1) / 50 for index in range(count) if caller.push(chunk)]


def test_steady_noise_is_not_speech_and_speech_in_it_is() -> None:
    caller = CallerSpeech()
    noise = np.random.default_rng(1).normal(0, 0.03, CHUNK).astype(np.float32)
    assert reached(caller, noise, 4.0) == []
    assert reached(caller, noise * 4, 0.5) == [pytest.approx(0.24, abs=0.081)]


def test_a_caller_who_goes_on_speaking_is_reported_once_a_second() -> None:
    caller = CallerSpeech()
    syllables = [LOUD] * 12 + [QUIET] * 4  # with gaps, as speech has
    reports = 0
    for chunk in syllables * 20:  # 6.4 s
        caller.push(chunk)
        reports += caller.still_speaking()
    assert 5 <= reports <= 7
    caller.vad(True)
    for chunk in syllables * 20:
        caller.push(chunk)
        assert not caller.still_speaking(), "the detector reports by itself"


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


def test_a_muted_caller_does_not_speak() -> None:
    caller = CallerSpeech()
    reached(caller, QUIET, 1.0)
    assert reached(caller, LOUD, 0.5)
    caller.mute()
    assert not caller.speaking
    caller.vad(True)
    caller.mute()
    assert reached(caller, LOUD, 1.0) == [], "the detector has not reported anew"
