from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.service.pacing import MAX_WAITING_FRAMES, InputPacer

CHUNK = 0.02


class Mic:
    """A microphone and a 20 ms tick on a simulated clock; every frame is taken at once."""

    def __init__(self, chunk: float = CHUNK) -> None:
        self.pacer = InputPacer()
        self.chunk = chunk
        self.now = 50.0
        self.frames: list[tuple[float, np.ndarray]] = []
        self._sample = 0
        self._due = 0.0

    def start(self) -> None:
        self.pacer.start(self.now)
        self.started = self.now

    def run(self, seconds: float, *, sound: bool = True, rate: float = 1.0) -> None:
        for _ in range(round(seconds / CHUNK)):
            self.now += CHUNK
            if sound:
                self._due += CHUNK * rate
                while self._due >= self.chunk - 1e-9:
                    self._due -= self.chunk
                    self.send(self.chunk)
            self.pacer.tick(self.now)
            self._take()

    def send(self, seconds: float) -> None:
        """Push audio whose samples count up from 1, so that each one is recognised."""
        count = round(seconds * SAMPLE_RATE)
        pcm = np.arange(self._sample + 1, self._sample + 1 + count, dtype=np.float32)
        self._sample += count
        self.pacer.push(pcm, self.now)
        self._take()

    def lose(self, seconds: float) -> None:
        """Let time pass without any audio."""
        self.run(seconds, sound=False)

    def _take(self) -> None:
        while (frame := self.pacer.take()) is not None:
            self.frames.append((self.now, frame))

    @property
    def ahead(self) -> float:
        """Seconds of frames taken, minus the time since the start."""
        return len(self.frames) * FRAME_SECONDS - (self.now - self.started)

    def gaps(self) -> list[float]:
        times = [time for time, _ in self.frames]
        return list(np.diff(times))


def test_steady_audio_passes_unchanged():
    mic = Mic()
    mic.start()
    mic.run(4.0)
    heard = np.concatenate([frame for _, frame in mic.frames])
    np.testing.assert_array_equal(heard, np.arange(1, len(heard) + 1))
    assert len(mic.frames) == 50
    assert mic.pacer.stats.silence == mic.pacer.stats.discarded == mic.pacer.stats.dropped == 0


@pytest.mark.parametrize("chunk", [0.01, 0.02, 0.04, 0.06, 0.1])
def test_usual_chunk_sizes_lose_nothing_after_the_first_second(chunk: float):
    mic = Mic(chunk)
    mic.start()
    mic.run(1.0)
    before = mic.pacer.stats
    mic.run(8.0)
    assert mic.pacer.stats.silence == before.silence
    assert mic.pacer.stats.discarded == before.discarded == 0


def test_a_silent_microphone_still_makes_frames_on_time():
    mic = Mic()
    mic.start()
    mic.lose(8.0)
    assert len(mic.frames) == 99
    assert max(mic.gaps()) <= FRAME_SECONDS + CHUNK + 1e-9
    assert not any(frame.any() for _, frame in mic.frames)


def test_before_the_start_only_the_newest_160_ms_wait():
    pacer = InputPacer()
    pacer.push(np.arange(SAMPLE_RATE, dtype=np.float32), 0.0)
    pacer.tick(30.0)
    assert pacer.waiting == MAX_WAITING_FRAMES
    pacer.start(31.0)
    pacer.tick(31.0)
    assert pacer.stats.silence == 0
    first = pacer.take()
    assert first is not None and first[0] == SAMPLE_RATE // FRAME_SAMPLES * FRAME_SAMPLES - 2 * 1920


def test_a_stall_of_two_seconds_leaves_no_delay():
    mic = Mic()
    mic.start()
    mic.run(1.0)
    mic.lose(2.0)  # a network stall: the audio arrives late, all at once
    for _ in range(100):
        mic.send(CHUNK)
    taken = len(mic.frames)
    mic.run(1.0)
    # The first 60 ms of the burst complete a frame early; the next one is later by as much.
    assert max(mic.gaps()) <= FRAME_SECONDS + 0.06 + 1e-9
    assert mic.ahead <= 0.12
    # Live audio is taken as soon as its frame is complete.
    time, frame = mic.frames[taken + 3]
    spoken_at = mic.started + 3.0 + (frame[-1] - 3.0 * SAMPLE_RATE) / SAMPLE_RATE
    assert 0 <= time - spoken_at <= 0.12
    stats = mic.pacer.stats
    assert 1.8 * SAMPLE_RATE < stats.silence < 2.0 * SAMPLE_RATE
    assert abs(stats.discarded - stats.silence) < 0.1 * SAMPLE_RATE


def test_one_big_chunk_after_a_stall_keeps_its_newest_part():
    mic = Mic()
    mic.start()
    mic.run(1.0)
    mic.lose(2.0)
    mic.send(2.0)
    mic.run(0.2)
    newest = 3.0 * SAMPLE_RATE
    heard = np.concatenate([frame for _, frame in mic.frames])
    voiced = heard[heard > 1.5 * SAMPLE_RATE]
    assert newest - 0.09 * SAMPLE_RATE < voiced[0] < newest
    np.testing.assert_array_equal(np.diff(voiced), 1)


def test_a_muted_microphone_loses_nothing_when_it_comes_back():
    mic = Mic()
    mic.start()
    mic.run(1.0)
    mic.lose(2.0)  # muted: nothing was recorded
    mic.run(2.0)
    assert mic.pacer.stats.discarded == 0
    heard = np.concatenate([frame for _, frame in mic.frames])
    voiced = heard[heard > 0]
    np.testing.assert_array_equal(voiced, np.arange(1, len(voiced) + 1))


def test_a_microphone_clock_that_runs_fast_or_slow_never_builds_up_delay():
    for rate in (0.995, 1.005):
        mic = Mic()
        mic.start()
        mic.run(120.0, rate=rate)
        assert abs(mic.ahead) <= 0.2
        assert max(mic.gaps()) <= FRAME_SECONDS + 3 * CHUNK


def test_a_late_tick_catches_up_without_a_queue():
    pacer = InputPacer()
    pacer.start(0.0)
    pacer.tick(5.0)  # the event loop was blocked
    assert pacer.waiting == MAX_WAITING_FRAMES
    # 4.94 s of silence are 61 whole frames.
    assert pacer.stats.dropped == (61 - MAX_WAITING_FRAMES) * FRAME_SAMPLES


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("talk"), st.floats(0.1, 2.0)),
            st.tuples(st.just("mute"), st.floats(0.1, 2.0)),
            st.tuples(st.just("burst"), st.floats(0.02, 3.0)),
        ),
        max_size=8,
    )
)
def test_frames_keep_the_pace_of_the_clock_for_any_input(script: list[tuple[str, float]]):
    mic = Mic()
    mic.start()
    for what, seconds in [*script, ("talk", 0.4)]:
        if what == "talk":
            mic.run(seconds)
        elif what == "mute":
            mic.lose(seconds)
        else:
            mic.send(seconds)
        # A burst may contain more whole frames than may wait.
        dropped = mic.pacer.stats.dropped / SAMPLE_RATE
        assert -0.2 <= mic.ahead + dropped and mic.ahead <= 0.2
        assert mic.pacer.waiting == 0
    gaps = mic.gaps()
    # Audio may run 160 ms ahead; then the clock catches up, and gets 80 ms ahead of the audio.
    assert not gaps or max(gaps) <= 0.16 + 0.08 + FRAME_SECONDS + 1e-9
    assert mic.ahead <= 0.12
