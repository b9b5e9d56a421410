"""The input queue of a session; sessions as a whole are tested in tests/engine/test_sessions.py."""

from __future__ import annotations

import subprocess
import sys
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_personaplex.audio import InputQueue, checked_pcm
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import InvalidAudio


def ramp(samples: int, start: int = 0) -> np.ndarray:
    """Samples that count up, so that each one is recognised."""
    return np.arange(start, start + samples, dtype=np.float32)


@given(
    st.integers(1, 4),
    st.lists(st.one_of(st.integers(0, 10 * FRAME_SAMPLES), st.just("take")), max_size=12),
)
def test_a_full_queue_drops_the_oldest_frames(limit: int, script: list[int | str]) -> None:
    queue = InputQueue(limit)
    waiting: deque[int] = deque()  # indices of the frames that should wait
    samples = completed = dropped = 0
    for step in script:
        if isinstance(step, str):
            frame = queue.take()
            assert (frame is None) == (not waiting)
            if frame is not None:
                expected = ramp(FRAME_SAMPLES, waiting.popleft() * FRAME_SAMPLES)
                np.testing.assert_array_equal(frame.pcm, expected)
        else:
            was_completed = completed
            pushed = queue.push(ramp(step, samples), now=1.5)
            samples += step
            completed = samples // FRAME_SAMPLES
            waiting.extend(range(was_completed, completed))
            assert pushed == (completed > was_completed)
            while len(waiting) > limit:
                waiting.popleft()
                dropped += 1
        assert (queue.queued, queue.has_frame) == (len(waiting), bool(waiting))
        assert queue.dropped == dropped


def test_a_frame_has_the_arrival_time_of_its_last_sample() -> None:
    queue = InputQueue(4)
    assert not queue.push(ramp(FRAME_SAMPLES - 1), now=1.0)
    assert queue.push(ramp(FRAME_SAMPLES), now=2.0)
    assert queue.push(ramp(1), now=3.0)
    frames = [queue.take(), queue.take()]
    assert [frame.arrived for frame in frames if frame is not None] == [2.0, 3.0]


def test_checked_pcm_returns_a_clipped_copy() -> None:
    pcm = np.array([-7, -1, 0.5, 7], np.float32)
    checked = checked_pcm(pcm)
    assert checked.tolist() == [-1, -1, 0.5, 1]
    assert not np.shares_memory(checked, pcm)


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        ([0.0], "not list"),
        (np.zeros(4), "not float64"),
        (np.zeros((2, 2), np.float32), r"not float32 \[2, 2\]"),
        (np.array([0, np.nan, np.inf], np.float32), "2 of 3 samples are NaN or infinite"),
    ],
)
def test_checked_pcm_refuses_other_audio(pcm: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidAudio, match=message):
        checked_pcm(pcm)


@pytest.mark.parametrize("module", ["session", "interface", "async_session"])
def test_the_contract_loads_without_torch(module: str) -> None:
    code = f"import sys, pipecat_personaplex.{module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
