"""The transports that bots serve."""

from __future__ import annotations

from typing import Any

from pipecat.runner.types import (
    DailyRunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)

from bots.transports import sample_rate, transport_of, transport_params


def test_rates_and_chunks_that_divide_a_frame() -> None:
    socket: Any = object()
    arguments = {
        "webrtc": SmallWebRTCRunnerArguments(webrtc_connection=None),
        "daily": DailyRunnerArguments(room_url="https://example.daily.co/room"),
        "twilio": WebSocketRunnerArguments(websocket=socket),
    }
    assert {transport_of(a): sample_rate(transport_of(a)) for a in arguments.values()} == {
        "webrtc": 24_000,
        "daily": 24_000,
        "twilio": 8_000,
    }
    browser = WebSocketRunnerArguments(websocket=socket, transport_type="websocket")
    assert transport_of(browser) == ""
    for name in ("webrtc", "twilio"):
        params = transport_params()[name]()
        assert params.audio_in_enabled and params.audio_out_enabled
        assert 8 % params.audio_out_10ms_chunks == 0
