"""WebRTC offers and candidates that no browser sends are refused before aiortc reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from aiortc import RTCPeerConnection
from aiortc.mediastreams import AudioStreamTrack, VideoStreamTrack
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from bots.offer_limit import OfferLimit
from bots.start_rate import StartRate
from pipecat_personaplex.errors import BadMessage
from pipecat_personaplex.talk.offers import check_offer

CANDIDATE = "a=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\n"
# What a stranger can reach once it has posted /start: the runner looks at the end of the path.
PATHS = (
    "/api/offer",
    "/sessions/1/api/offer",
    "/sessions/1/x/api/offer",
)


async def browsers_offer() -> str:
    """Audio, camera, screen and messages."""
    peer = RTCPeerConnection()
    peer.createDataChannel("rtvi-ai")
    for track in (AudioStreamTrack(), VideoStreamTrack(), VideoStreamTrack()):
        peer.addTrack(track)
    await peer.setLocalDescription(await peer.createOffer())
    sdp: str = peer.localDescription.sdp
    await peer.close()
    return sdp


@pytest.fixture
def http() -> httpx.AsyncClient:
    async def offered(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/{path:path}", offered, methods=["POST", "PATCH"])])
    app.add_middleware(OfferLimit)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost")


HOSTILE: dict[str, Callable[[str], str]] = {
    "candidates": lambda sdp: sdp + CANDIDATE * 65,
    "lines": lambda sdp: sdp + "a=rtcp-fb:* nack\r\n" * 600,
    "media sections": lambda sdp: sdp + "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\n" * 9,
}


@pytest.mark.parametrize("what", HOSTILE)
async def test_an_offer_beyond_all_use_is_refused(http: httpx.AsyncClient, what: str) -> None:
    sdp = HOSTILE[what](await browsers_offer())
    with pytest.raises(BadMessage, match=f"the offer has .* {what}; .* at most"):
        check_offer(sdp)
    for path in PATHS:
        response = await http.post(path, json={"sdp": sdp, "type": "offer"})
        assert response.status_code == 400 and what in response.json()["detail"]


async def test_a_browsers_offer_passes_unchanged(http: httpx.AsyncClient) -> None:
    body = json.dumps({"sdp": await browsers_offer() + CANDIDATE * 20, "type": "offer"})
    for path in PATHS:
        response = await http.post(path, content=body)
        assert (response.status_code, response.text) == (200, body)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 60_000, b'{"sdp": [1]}', b"\xff\xfe{"])
async def test_what_is_no_offer_is_left_to_the_runner(http: httpx.AsyncClient, body: bytes) -> None:
    assert (await http.post("/api/offer", content=body)).content == body


async def test_a_connection_has_a_number_of_candidates(http: httpx.AsyncClient) -> None:
    async def trickle(connection: str, candidates: int) -> int:
        message: dict[str, Any] = {"pc_id": connection, "candidates": [{}] * candidates}
        return (await http.patch("/api/offer", json=message)).status_code

    assert [await trickle("a", 30) for _ in range(3)] == [200, 200, 400]
    assert await trickle("b", 64) == 200
    assert await trickle("c", 65) == 400


@pytest.mark.parametrize("path", [*PATHS, "/ws", "/ws/token"])
async def test_every_way_to_start_a_call_is_limited(path: str) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("")

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
    app.add_middleware(StartRate, clock=lambda: 0.0)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        statuses = [(await client.post(path)).status_code for _ in range(11)]
    assert statuses == [200] * 10 + [429]
