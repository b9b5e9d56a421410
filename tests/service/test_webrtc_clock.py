"""A wall clock that is set back does not silence a browser's call."""

from __future__ import annotations

import asyncio
import time

import pytest
from pipecat.processors.frameworks.rtvi import observer
from pipecat.transports import base_output
from pipecat.transports.smallwebrtc import connection, transport
from pipecat.transports.smallwebrtc.transport import RawAudioTrack

from pipecat_personaplex.service.webrtc_clock import use_monotonic_time

PACKET = bytes(2 * 240)  # 10 ms


async def play(track: RawAudioTrack, packets: int) -> None:
    for _ in range(packets):
        track.add_audio_bytes(PACKET)
        await asyncio.wait_for(track.recv(), 2.0)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transport, connection, base_output, observer):
        monkeypatch.setattr(module, "time", time)  # setattr again at the end of the test


async def step_back(monkeypatch: pytest.MonkeyPatch) -> None:
    track = RawAudioTrack(24_000, auto_silence=False)
    await play(track, 3)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() - 30.0)
    await play(track, 3)


async def test_pipecats_track_follows_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this no longer fails, the repair is not needed any more."""
    with pytest.raises(TimeoutError):
        await step_back(monkeypatch)


async def test_with_the_repair_audio_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    use_monotonic_time()
    use_monotonic_time()
    await step_back(monkeypatch)


def test_a_change_of_pipecat_is_reported(
    monkeypatch: pytest.MonkeyPatch, warnings_logged: list[str]
) -> None:
    monkeypatch.delattr(transport, "time")
    use_monotonic_time()
    assert "smallwebrtc.transport has changed" in warnings_logged[0]
    assert not hasattr(transport, "time")
