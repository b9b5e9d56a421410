"""The caller's frames: odd sizes, changing formats, and several participants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pipecat.frames.frames import InputAudioRawFrame, UserAudioRawFrame

from pipecat_personaplex.audio import float_to_pcm16
from pipecat_personaplex.service.caller_input import CallerInput
from tests.helpers.pipelines import tone

RATE = 24_000
CHUNK = RATE // 50


def frame(audio: bytes, channels: int = 1, rate: int = RATE) -> InputAudioRawFrame:
    return InputAudioRawFrame(audio, rate, channels)


def spoken(participant: str, samples: np.ndarray) -> UserAudioRawFrame:
    return UserAudioRawFrame(samples.tobytes(), RATE, 1, user_id=participant)


def joined(parts: list[np.ndarray]) -> np.ndarray[Any, Any]:
    return float_to_pcm16(np.concatenate(parts))


@pytest.mark.parametrize("size", [961, 1, 959, 3])
def test_chunks_that_end_within_a_sample_lose_nothing(size: int) -> None:
    caller, samples = CallerInput(), tone(0.2)
    audio = samples.tobytes()
    parts = [caller.pcm(frame(audio[i : i + size])) for i in range(0, len(audio), size)]
    assert np.array_equal(joined(parts), samples)


def test_half_of_a_stereo_pair_waits_for_the_other_half() -> None:
    caller, samples = CallerInput(), tone(0.2)
    audio = np.stack([samples, samples], axis=1).tobytes()
    parts = [caller.pcm(frame(audio[i : i + 962], channels=2)) for i in range(0, len(audio), 962)]
    assert np.array_equal(joined(parts), samples)


def test_a_partial_sample_does_not_survive_a_change_of_the_format() -> None:
    caller, samples = CallerInput(), tone(0.02)
    caller.pcm(frame(samples.tobytes() + b"\x7f", channels=2))
    assert np.array_equal(joined([caller.pcm(frame(samples.tobytes()))]), samples)


@pytest.mark.parametrize(
    ("rate", "channels"), [(0, 1), (RATE, 0), (1, 1), (1_500_000_000, 1), (RATE, 4_000)]
)
def test_a_frame_of_an_impossible_format_is_dropped(rate: int, channels: int) -> None:
    caller, samples = CallerInput(), tone(0.02)
    broken = frame(samples.tobytes())
    broken.sample_rate, broken.num_channels = rate, channels
    for kind in (broken, UserAudioRawFrame(samples.tobytes(), RATE, 1, user_id="a")):
        kind.sample_rate, kind.num_channels = rate, channels
        assert not len(caller.pcm(kind))
    assert np.array_equal(joined([caller.pcm(frame(samples.tobytes()))]), samples)


def mixed(caller: CallerInput, *participants: np.ndarray) -> np.ndarray[Any, Any]:
    """What the model hears of participants who send 20 ms in turn, "a" first."""
    parts = []
    for start in range(0, len(participants[0]), CHUNK):
        for name, samples in zip("abcdef", participants, strict=False):
            parts.append(caller.pcm(spoken(name, samples[start : start + CHUNK])))
    return joined(parts)


def test_a_silent_participant_leaves_the_caller_unchanged() -> None:
    caller, samples = CallerInput(), tone(1.0)
    silence = np.zeros_like(samples)
    for participants in ((samples, silence), (silence, samples)):
        heard = mixed(CallerInput(), *participants)
        assert len(heard) == len(samples), "the others do not count as time that has passed"
        switches = np.count_nonzero(np.diff(np.abs(heard) > 0) & (np.abs(heard[1:]) == 0))
        assert switches < 2 * 440 * 2, "as many zeros as a tone has"
        late = CHUNK if participants[0] is silence else 0  # "b" waits for the next chunk of "a"
        assert np.array_equal(heard[late:], samples[: len(heard) - late])
    assert not len(caller.pcm(spoken("a", samples[:0])))


def test_two_participants_are_added_and_clipped() -> None:
    loud = tone(0.2, peak=30_000)
    heard = mixed(CallerInput(), loud, loud)
    assert len(heard) == len(loud) and np.abs(heard).max() == 32_767


def test_another_participant_takes_over_when_the_first_one_leaves() -> None:
    caller, samples = CallerInput(), tone(1.0)
    caller.pcm(spoken("a", samples[:CHUNK]))
    parts = [caller.pcm(spoken("b", samples[i : i + CHUNK])) for i in range(0, len(samples), CHUNK)]
    assert np.array_equal(joined(parts), samples)


def test_the_transports_own_mix_wins() -> None:
    caller, samples = CallerInput(), tone(0.2)
    parts = []
    for start in range(0, len(samples), CHUNK):
        chunk = samples[start : start + CHUNK]
        parts += [caller.pcm(frame(chunk.tobytes())), caller.pcm(spoken("a", chunk))]
    assert np.array_equal(joined(parts), samples)


def test_many_participants_are_bounded() -> None:
    caller = CallerInput()
    for number in range(200):
        caller.pcm(spoken(f"{number}", tone(0.02)))
    assert len(caller._participants) <= 32 and len(caller._mixer._waiting) <= 32
