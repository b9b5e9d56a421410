"""The page's server, without a browser."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.talk.about import describe_model
from pipecat_personaplex.talk.host import TalkHost, TalkOptions
from pipecat_personaplex.talk.ice import parse_ice_server
from pipecat_personaplex.talk.local_engine import LocalEngine
from pipecat_personaplex.talk.page_app import create_app
from tests.golden_data import GOLDEN
from tests.helpers.logs import recorded

ORIGIN = "http://localhost:7860"
SOCKET = "ws://localhost:7860/api/socket"
PUBLIC = "https://talk.example.com"
SPEECH = GOLDEN / "voice_f.wav"


def client(served: TalkHost, **headers: str) -> TestClient:
    return TestClient(create_app(served), base_url=ORIGIN, headers=headers)


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def host(local: LocalEngine) -> TalkHost:
    return TalkHost(describe_model("nano"), TalkOptions(note="no GPU"), local)


@pytest.fixture
def page(host: TalkHost) -> Iterator[TestClient]:
    with client(host, origin=ORIGIN) as page:
        yield page


class TestInfo:
    def test_the_page_learns_the_model_its_voices_and_what_to_ask(self, page: TestClient) -> None:
        info = page.get("/api/info").json()
        assert (info["state"], info["model"], info["note"]) == ("ready", "nano", "no GPU")
        assert info["voices"] == ["NATF2", "NATM1"] and info["voice"] == "NATF2"
        assert [role["kind"] for role in info["roles"]] == ["service", "assistant"]
        assert "What is on the menu?" in info["roles"][0]["questions"]
        assert info["prompt"] == info["roles"][0]["prompt"]
        assert (info["slots"], info["calls"], info["transcribes"]) == (1, 0, False)

    def test_while_the_model_loads_and_when_it_cannot_be_loaded(self) -> None:
        host = TalkHost(describe_model("nvidia/personaplex-7b-v1"), TalkOptions())
        with client(host) as page:
            assert page.get("/api/info").json()["state"] == "loading"
            response = page.post("/api/prompt", json={"prompt": "You are a teacher."})
            assert response.status_code == 503 and "being loaded" in response.json()["detail"]
            host.failure = "the model is gated: accept its licence"
            info = page.get("/api/info").json()
            assert (info["state"], info["failure"]) == ("failed", host.failure)

    def test_options_are_the_defaults_of_the_page(self, local: LocalEngine) -> None:
        options = TalkOptions(voice="NATM1", prompt="You sell tea.", greeting="Hello.")
        with client(TalkHost(describe_model("nano"), options, local)) as page:
            info = page.get("/api/info").json()
        assert (info["voice"], info["prompt"]) == ("NATM1", "You sell tea.")
        assert info["greeting"] == "Hello."


class TestPage:
    def test_the_page_may_load_nothing_but_its_own_files(self, page: TestClient) -> None:
        response = page.get("/")
        assert response.status_code == 200 and "PersonaPlex" in response.text
        assert response.headers["content-security-policy"].startswith("default-src 'self';")
        for name in ("main.js", "tap.js", "line.js", "style.css", "icon.svg"):
            assert page.get(f"/static/{name}").status_code == 200, name

    def test_the_page_learns_the_servers_for_its_connections(self, local: LocalEngine) -> None:
        servers = ("stun:stun.example.com:3478", "turn:turn.example.com:3478,anna,a,secret")
        options = TalkOptions(ice_servers=tuple(map(parse_ice_server, servers)))
        with client(TalkHost(describe_model("nano"), options, local)) as page:
            account = {"username": "anna", "credential": "a,secret"}
            assert page.get("/api/info").json()["ice_servers"] == [
                {"urls": "stun:stun.example.com:3478"},
                {"urls": "turn:turn.example.com:3478"} | account,
            ]

    def test_other_pages_and_other_names_are_refused(self, host: TalkHost) -> None:
        with client(host, origin="https://evil.example") as other:
            assert other.post("/api/offer", json={}).status_code == 403
            with pytest.raises(WebSocketDisconnect), other.websocket_connect(SOCKET):
                pass
        with client(host, host="rebound.example") as other:
            response = other.get("/api/info")
            assert response.status_code == 403
            assert "rebound.example" in response.json()["detail"]

    def test_a_shared_page_has_the_names_that_were_given(self, host: TalkHost) -> None:
        app = create_app(host, frozenset({"192.0.2.7"}))
        with TestClient(app, base_url="https://192.0.2.7:7860") as page:
            assert page.get("/api/info").status_code == 200

    @pytest.mark.parametrize("seen_as", ["talk.example.com", "localhost:7860"])
    def test_a_proxy_may_keep_or_replace_the_host(self, host: TalkHost, seen_as: str) -> None:
        app = create_app(host, frozenset({"talk.example.com"}), frozenset({PUBLIC}))
        own = {"host": seen_as, "origin": PUBLIC}
        with TestClient(app, base_url=ORIGIN) as page:
            assert page.post("/api/prompt", json={"prompt": ""}, headers=own).status_code == 200
            with page.websocket_connect(SOCKET, headers=own) as call:
                call.send_text("not JSON")
                assert call.receive()["code"] == 1008  # the call itself, and not its origin
            for origin in ("https://evil.example", "null"):
                foreign = own | {"origin": origin}
                assert page.post("/api/prompt", json={}, headers=foreign).status_code == 403
            rebound = {"host": "rebound.example", "origin": PUBLIC}
            assert page.get("/api/info", headers=rebound).status_code == 403

    @pytest.mark.parametrize(
        "headers", [{"host": "["}, {"host": "]"}, {"origin": "http://["}, {"origin": "http://[::1"}]
    )
    def test_headers_that_are_no_addresses_are_refused(
        self, page: TestClient, headers: dict[str, str]
    ) -> None:
        assert page.get("/api/info", headers=headers).status_code == 403

    @pytest.mark.parametrize("path", ["/api/offer", "/api/prompt", "/api/hangup"])
    @pytest.mark.parametrize("body", [b"[" * 60_000, b'{"a":' * 30_000, b'{"a":"\xff"}', b""])
    def test_bodies_that_are_no_json_are_refused(
        self, page: TestClient, path: str, body: bytes
    ) -> None:
        response = page.post(path, content=body)
        assert response.status_code == 400 and "not JSON" in response.json()["detail"]

    def test_requests_are_bounded(self, page: TestClient) -> None:
        response = page.post("/api/prompt", content=b" " * (300 << 10))
        assert response.status_code == 413 and "256 KiB" in response.json()["detail"]
        response = page.post("/api/voices?name=a&file=a.wav", content=bytes(17 << 20))
        assert response.status_code == 413


class TestPrompts:
    def test_the_size_of_a_prompt(self, page: TestClient) -> None:
        empty = page.post("/api/prompt", json={"voice": "NATF2", "prompt": ""}).json()
        size = page.post("/api/prompt", json={"prompt": "You are a teacher."}).json()
        assert empty["text"] == 0 and size["text"] > 4
        assert size["frames"] == size["text"] + size["voice"] + 12
        assert size["limit"] >= 2_999

    @pytest.mark.parametrize(
        ("body", "detail"),
        [
            (b"{", "not JSON"),
            (b"[]", "must be a JSON object"),
            (b'{"voice": "NATX9"}', "voice 'NATX9' is unknown"),
            (b'{"prompt": 7}', "text_prompt must be text"),
        ],
    )
    def test_an_invalid_request_gets_one_line(
        self, page: TestClient, body: bytes, detail: str
    ) -> None:
        response = page.post("/api/prompt", content=body)
        assert response.status_code == 400 and detail in response.json()["detail"]


class TestVoices:
    def test_a_preview_speaks(self, page: TestClient) -> None:
        first, again = (page.get("/api/voices/NATM1.wav") for _ in range(2))
        pcm, rate = soundfile.read(io.BytesIO(first.content))
        assert rate == 24_000 and 0.5 < len(pcm) / rate < 4.9
        assert np.sqrt(np.mean(pcm**2)) > 0.01
        assert again.content == first.content

    def test_an_unknown_voice_has_no_preview(self, page: TestClient) -> None:
        response = page.get("/api/voices/NATX9.wav")
        assert response.status_code == 400 and "NATX9" in response.json()["detail"]

    def test_a_recording_becomes_a_voice(self, page: TestClient) -> None:
        query = {"name": "anna", "file": "anna.wav"}
        for _ in range(2):  # the second replaces the first
            response = page.post("/api/voices", params=query, content=SPEECH.read_bytes())
            assert response.json()["voices"] == ["NATF2", "NATM1", "anna"]
        assert page.get("/api/info").json()["voices"] == ["NATF2", "NATM1", "anna"]
        assert page.post("/api/prompt", json={"voice": "anna", "prompt": ""}).json()["voice"] > 10

    @pytest.mark.parametrize(
        ("name", "file", "status", "detail"),
        [
            ("../x", "x.wav", 400, "1 to 32 letters"),
            ("", "x.wav", 400, "1 to 32 letters"),
            ("x", "x.exe", 400, "not .exe"),
            ("x", "", 400, "without a suffix"),
            ("NATF2", "x.wav", 409, "choose another name"),
            ("x", "x.wav", 400, "audio file x.wav cannot be read"),
            ("x", "x.pt", 400, "voice x.pt is cut off"),
        ],
    )
    def test_what_is_no_voice(
        self, page: TestClient, name: str, file: str, status: int, detail: str
    ) -> None:
        response = page.post("/api/voices", params={"name": name, "file": file}, content=b"noise")
        assert response.status_code == status and detail in response.json()["detail"]


class TestCalls:
    @pytest.mark.parametrize(
        ("data", "detail"),
        [
            ({"voice": "NATX9"}, "voice 'NATX9' is unknown"),
            ({"prompt": "a " * 9_000}, "shorten the text prompt"),
            ({"prompt": "a" * 20_001}, "20000 at most"),
            ({"greeting": 7}, "greeting must be a text"),
            ({"sampling": {"warmth": 1}}, "sampling may have"),
            ({"sampling": {"top_k_text": 0}}, "top_k_text"),
            ([1], "must be an object"),
        ],
    )
    def test_a_call_that_cannot_be_served_is_refused_at_once(
        self, page: TestClient, data: Any, detail: str
    ) -> None:
        offer = {"sdp": "v=0", "type": "offer", "request_data": data}
        response = page.post("/api/offer", json=offer)
        assert response.status_code == 400 and detail in response.json()["detail"]

    @pytest.mark.parametrize("offer", [{}, {"sdp": 1, "type": "offer"}, {"sdp": "x", "type": "pr"}])
    def test_what_is_no_offer(self, page: TestClient, offer: Any) -> None:
        response = page.post("/api/offer", json=offer)
        assert response.status_code == 400 and "an offer needs sdp" in response.json()["detail"]

    @pytest.mark.parametrize(
        ("sdp", "detail"),
        [("v=0", "has no audio"), ("m=audio\n" + "a=candidate:1\n" * 65, "65 candidates")],
    )
    def test_an_offer_that_no_browser_sends_takes_no_slot(
        self, page: TestClient, sdp: str, detail: str
    ) -> None:
        response = page.post("/api/offer", json={"sdp": sdp, "type": "offer"})
        assert response.status_code == 400 and detail in response.json()["detail"]
        assert page.get("/api/info").json()["calls"] == 0

    def test_an_offer_that_aiortc_cannot_read(self, page: TestClient) -> None:
        response = page.post("/api/offer", json={"sdp": "v=0\nm=audio", "type": "offer"})
        assert response.status_code == 400 and "cannot be answered" in response.json()["detail"]
        assert page.get("/api/info").json()["calls"] == 0

    def test_a_call_over_a_websocket_speaks_and_frees_its_slot(self, page: TestClient) -> None:
        silence = bytes(2 * FRAME_SAMPLES)
        with page.websocket_connect(SOCKET) as call:
            call.send_json({"voice": "NATF2", "greeting": "Hello there."})
            assert call.receive_json() == {"opened": True}
            assert page.get("/api/info").json()["calls"] == 1
            with page.websocket_connect(SOCKET) as late:
                late.send_json({})
                refused = late.receive_json()
                assert refused["code"] == "EngineFull" and "all 1 sessions" in refused["detail"]
            offer = {"sdp": "v=0", "type": "offer"}
            response = page.post("/api/offer", json=offer)
            assert response.status_code == 503 and response.headers["retry-after"]
            ready = {"label": "rtvi-ai", "type": "client-ready", "id": "1"}
            call.send_json(ready | {"data": {"version": "2.2.0", "about": {"library": "tests"}}})
            words, announced, loudest = [], {}, 0
            for _ in range(400):
                call.send_bytes(silence[:960])
                message = call.receive()
                if (pcm := message.get("bytes")) is not None:
                    loudest = max(loudest, int(np.abs(np.frombuffer(pcm, np.int16)).max()))
                    continue
                event = json.loads(message["text"])
                if event["type"] == "bot-output":
                    # Pipecat's own page shows a word that is announced, and marks it as spoken.
                    word, segment = event["data"]["text"].strip(), event["data"]["segment_id"]
                    if event["data"]["spoken_status"] == "new":
                        announced[segment] = word
                        continue
                    assert event["data"]["spoken_status"] == "completed"
                    assert announced[segment] == word
                    words.append(word)
                if words[-1:] == ["there."]:
                    break
            assert words[:2] == ["Hello", "there."] and loudest > 1_000
            call.close()
            until(lambda: page.get("/api/info").json()["calls"] == 0)

    def test_audio_beyond_real_time_is_dropped(self, page: TestClient) -> None:
        with recorded("WARNING") as log, page.websocket_connect(SOCKET) as call:
            call.send_json({"voice": "NATF2"})
            assert call.receive_json() == {"opened": True}
            for _ in range(10):  # 13 s
                call.send_bytes(bytes(64_000))
            until(lambda: bool(log.containing("faster than real time")))
            call.close()
            until(lambda: page.get("/api/info").json()["calls"] == 0)

    def test_what_opens_no_call_over_a_websocket(self, page: TestClient) -> None:
        with page.websocket_connect(SOCKET) as call:
            call.send_text("not JSON")
            assert call.receive()["code"] == 1008
        with page.websocket_connect(SOCKET) as call:
            call.send_text("[" * 60_000)
            assert call.receive()["code"] == 1008
        with page.websocket_connect(SOCKET) as call:
            call.send_json({"voice": "NATX9"})
            assert "NATX9" in call.receive_json()["detail"]

    def test_an_unknown_call_cannot_be_hung_up(self, page: TestClient) -> None:
        assert page.post("/api/hangup", json={"pc_id": "x"}).status_code == 204
