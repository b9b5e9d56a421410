"""Slots of `personaplex talk`: who gets one, and what the page answers when none is free."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from aiortc import RTCPeerConnection
from pipecat.transports.smallwebrtc.request_handler import SmallWebRTCRequestHandler
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import EngineFull
from pipecat_personaplex.talk import page_app
from pipecat_personaplex.talk.about import describe_model
from pipecat_personaplex.talk.conversation import CallRequest
from pipecat_personaplex.talk.host import TalkHost, TalkOptions
from pipecat_personaplex.talk.local_engine import LocalEngine
from pipecat_personaplex.talk.page_app import create_app
from tests.helpers.servers import eventually

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


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The connections that Pipecat's handler keeps, by id."""
    connections: dict[str, object] = {}

    def handler(**options: Any) -> SmallWebRTCRequestHandler:
        made = SmallWebRTCRequestHandler(**options)
        made._pcs_map = connections  # type: ignore[assignment]
        return made

    monkeypatch.setattr(page_app, "SmallWebRTCRequestHandler", handler)
    return connections


def test_a_slot_that_is_taken_while_an_offer_is_answered(
    host: TalkHost, known: dict[str, object], monkeypatch: pytest.MonkeyPatch
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
    assert not known, "a refused connection is not kept"


def test_a_connection_that_is_made_anew_keeps_its_call(
    host: TalkHost, known: dict[str, object]
) -> None:
    with page(host) as client:
        first = client.post("/api/offer", json=asyncio.run(offer())).json()["pc_id"]
        for _ in range(2):  # twice: the call is known by its new id
            again = asyncio.run(offer()) | {"pc_id": first, "restart_pc": True}
            second = client.post("/api/offer", json=again).json()["pc_id"]
            assert second != first and list(known) == [second] and host.calls == 1
            first = second
        client.post("/api/hangup", json={"pc_id": first})
        eventually(lambda: host.calls == 0 and not known)


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


@contextmanager
def serving(host: TalkHost, opening: Callable[[], Awaitable[None]]) -> Iterator[str]:
    """Serve calls; ``opening`` runs before the server sends ``opened`` to a page."""
    app = before_opened(create_app(host), opening)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"ws://127.0.0.1:{port}/api/socket"
    finally:
        server.should_exit = True
        thread.join()


def before_opened(app: ASGIApp, opening: Callable[[], Awaitable[None]]) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched_send(message: Message) -> None:
            if '"opened"' in (message.get("text") or ""):
                await opening()
            await send(message)

        await app(scope, receive, watched_send)

    return wrapped


def press_talk(page: ClientConnection) -> None:
    page.send(json.dumps({"voice": "NATF2", "prompt": "You sell tea."}))


def test_a_page_is_told_that_its_call_is_open_once_it_has_the_slot(host: TalkHost) -> None:
    """Of two that press Talk at once, the other learns at once that it has none."""
    opening, may_open = threading.Event(), threading.Event()

    async def hold() -> None:
        opening.set()
        assert await asyncio.to_thread(may_open.wait, 60)

    with serving(host, hold) as url, connect(url, proxy=None) as page:
        press_talk(page)
        assert opening.wait(30)
        with connect(url, proxy=None) as other:
            press_talk(other)
            refused = json.loads(other.recv(10))
            assert refused["code"] == "EngineFull" and "all 1 sessions" in refused["detail"]
        may_open.set()
        assert json.loads(page.recv(30)) == {"opened": True}
        page.close()
        eventually(lambda: host.calls == 0)


def test_a_page_that_has_gone_before_its_call_is_open_frees_the_slot(host: TalkHost) -> None:
    calls: list[int] = []

    async def fail() -> None:
        calls.append(host.calls)
        raise OSError("the page has gone")

    with serving(host, fail) as url:
        for _ in range(2):
            with connect(url, proxy=None) as page:
                press_talk(page)
                with pytest.raises(ConnectionClosed):
                    page.recv(30)
            assert host.calls == 0
    assert calls == [1, 1]
