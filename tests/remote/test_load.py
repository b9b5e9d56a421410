"""Load: twenty callers in real time on two servers."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.remote import RemoteEngine
from tests.helpers.servers import ServeProcess
from tests.remote.helpers import WAIT, tone, until

pytestmark = pytest.mark.serial

CALLERS = 20
SECONDS = float(os.environ.get("PERSONAPLEX_LOAD_SECONDS", "8"))


class Talker:
    """A caller who pushes frames in real time and records the latency of output frames."""

    def __init__(self, engine: RemoteEngine, number: int):
        self.round_trip_ms: list[float] = []
        self.added_ms: list[float] = []
        self.order: list[int] = []
        self.pushed: list[float] = []
        self.session = engine.open_session(
            Persona("NATF2", f"You are caller {number}'s friend."),
            SamplingParams(seed=number),
            on_frame=self._on_frame,
        )

    def _on_frame(self, frame: SessionFrame) -> None:
        elapsed = (time.monotonic() - self.pushed[frame.index]) * 1e3
        self.round_trip_ms.append(elapsed)
        self.added_ms.append(elapsed - frame.timings.total_ms)
        self.order.append(frame.index)

    def done(self, frames: int) -> bool:
        stats = self.session.stats()
        return self.session.closed or stats.frames + stats.dropped_frames == frames

    def speak(self, at: float, frames: int) -> None:
        for index in range(frames):
            time.sleep(max(0.0, at + index * FRAME_SECONDS - time.monotonic()))
            pcm = tone(index % 99)
            self.pushed.append(time.monotonic())
            self.session.push(pcm)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
def test_twenty_callers_on_two_servers() -> None:
    frames = round(SECONDS / FRAME_SECONDS)
    options = ("--max-sessions", 12)
    with ServeProcess(*options) as one, ServeProcess(*options) as two:
        # If the machine stalls for two seconds, frames must be late, not dropped.
        with RemoteEngine([one.url, two.url], max_queued_frames=frames) as engine:
            until(lambda: all(server.reachable for server in engine.stats().servers))
            talkers = [Talker(engine, number) for number in range(CALLERS)]
            assert all(talker.session.wait_ready(WAIT) for talker in talkers)
            shares = [server.sessions for server in engine.stats().servers]
            assert shares == [CALLERS // 2, CALLERS // 2]
            # Real calls start at different times within a frame.
            start = time.monotonic() + 0.2
            threads = [
                threading.Thread(target=t.speak, args=(start + n * FRAME_SECONDS / CALLERS, frames))
                for n, t in enumerate(talkers)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            until(lambda: all(talker.done(frames) for talker in talkers), timeout=60)
            report(talkers, engine)
            for talker in talkers:
                assert talker.order == list(range(frames))
                assert talker.session.stats().dropped_frames == 0
                assert talker.session.error is None


def report(talkers: list[Talker], engine: RemoteEngine) -> None:
    added = np.concatenate([talker.added_ms for talker in talkers])
    whole = np.concatenate([talker.round_trip_ms for talker in talkers])
    dropped = sum(talker.session.stats().dropped_frames for talker in talkers)
    late = sum(talker.session.stats().late_frames for talker in talkers)
    print(
        f"\n{len(talkers)} callers, {len(engine.stats().servers)} servers, {SECONDS:g} s: "
        f"{len(added)} output frames, {dropped} dropped; "
        f"added p50 {np.percentile(added, 50):.1f} ms, p99 {np.percentile(added, 99):.1f} ms; "
        f"round trip p50 {np.percentile(whole, 50):.1f} ms, p99 {np.percentile(whole, 99):.1f} ms; "
        f"late {late}"
    )
