"""Slots of `personaplex talk`: who gets one, and what the page answers when none is free."""

from __future__ import annotations

import asyncio
import threading

import pytest
from aiortc import RTCPeerConnection
from starlette.testclient import TestClient

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import EngineFull
from pipecat_personaplex.talk.about import describe_model
from pipecat_personaplex.talk.conversation import CallRequest
from pipecat_personaplex.talk.host import TalkHost, TalkOptions
from pipecat_personaplex.talk.local_engine import LocalEngine
from pipecat_personaplex.talk.page_app import create_app

ORIGIN = "http://localhost:7860"
CALL = CallRequest(Persona("NATF2", "You sell tea."))


@pytest.fixture
def host(local: LocalEngine) -> TalkHost:
    return TalkHost(describe_model("nano"), TalkOptions(), local)


def page(host: TalkHost) -> TestClient:
    return TestClient(create_app(host), base_url=ORIGIN, headers={"origin": ORIGIN})


async def offer() -> dict[str, str]:
    peer = RTCPeerConnection()
    peer.addTransceiver("audio")
    await peer.setLocalDescription(await peer.createOffer())
    description = peer.localDescription
    await peer.close()
    return {"sdp": description.sdp, "type": "offer"}


def test_a_slot_that_is_taken_while_an_offer_is_answered(
    host: TalkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[object] = []

    def taken(connection: object, request: CallRequest) -> None:
        connections.append(connection)
        raise EngineFull(1)

    monkeypatch.setattr(host, "start_call", taken)
    with page(host) as client:
        response = client.post("/api/offer", json=asyncio.run(offer()))
    assert response.status_code == 503 and "all 1 sessions" in response.json()["detail"]
    [connection] = connections
    assert connection.pc.connectionState == "closed"  # type: ignore[attr-defined]


def test_an_offer_for_a_call_that_is_over(host: TalkHost) -> None:
    with page(host) as client:
        response = client.post("/api/offer", json=asyncio.run(offer()) | {"pc_id": "gone"})
    assert response.status_code == 400 and "this call is over" in response.json()["detail"]


async def test_a_call_waits_for_the_slot_of_a_preview(
    host: TalkHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = threading.Event()

    def preview(voice: str) -> bytes:
        assert spoken.wait(10)
        return b"RIFF"

    monkeypatch.setattr(host.require(), "preview", preview)
    previewing = asyncio.create_task(host.preview("NATF2"))
    await asyncio.sleep(0)
    with pytest.raises(EngineFull):
        host.check(CALL)
    admitting = asyncio.create_task(host.admit(CALL))
    await asyncio.sleep(0.1)
    assert not admitting.done()
    spoken.set()
    await asyncio.wait_for(admitting, 10)
    assert await previewing == b"RIFF"
