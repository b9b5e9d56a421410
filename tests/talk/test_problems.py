"""What may go wrong with a call: the page says it in clear words within three seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Playwright, Route, WebSocketRoute, expect

from tests.helpers.chromium import browsing, needs_chromium
from tests.helpers.servers import ServeProcess
from tests.talk.browsers import NO_WEBRTC, NO_WEBSOCKET, TalkPage
from tests.talk.processes import TalkProcess
from tests.talk.stand_in_server import StandInServer
from tests.talk.watching import (
    OPENED,
    SECONDS,
    press_talk,
    seconds_until,
    until,
    until_closed,
    watched,
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.page,
    pytest.mark.slow,
    needs_chromium,
]
# A firewall that drops what a WebSocket sends.
SILENT_WEBSOCKET = """
window.WebSocket = class extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  readyState = 0;
  close() {}
};
"""
RELEASE = "nvidia/personaplex-7b-v1"
# WebRTC does not get through; while the page waits for the answer to its hang-up, which never
# comes, the person presses Cancel.
CANCEL_DURING_HANG_UP = """
RTCPeerConnection.prototype.setRemoteDescription = async () => {};
const send = window.fetch;
window.fetch = (address, options) => {
  if (address !== "api/hangup") return send(address, options);
  setTimeout(() => document.getElementById("talk").click());
  return new Promise(() => {});
};
"""


def test_every_slot_taken(opened: TalkPage, browser: Browser, bot: TalkProcess) -> None:
    opened.talk()
    with watched(browser, bot.url) as other:
        other.open()
        press_talk(other)
        other.until_banner("Every slot is taken")
        assert seconds_until(other, "Every slot is taken") < SECONDS
        opened.hang_up()
        other.page.get_by_role("button", name="Try again").click()
        other.until_status("Talk now")
        other.hang_up()


@pytest.mark.parametrize("socket", [NO_WEBSOCKET, SILENT_WEBSOCKET], ids=["refused", "silent"])
def test_a_connection_that_is_blocked(browser: Browser, bot: TalkProcess, socket: str) -> None:
    with watched(browser, bot.url, NO_WEBRTC, socket) as page:
        page.open()
        press_talk(page)
        page.until_banner("a firewall, a VPN or a proxy blocks WebRTC")
        assert seconds_until(page, "a firewall, a VPN or a proxy") < SECONDS


def test_a_firewall_that_drops_packets(browser: Browser, bot: TalkProcess) -> None:
    """WebRTC gets an answer, and no packet through; a WebSocket takes its place."""

    def nowhere(route: Route) -> None:
        # Both sides get an address at which no machine answers.
        offer = route.request.post_data_json | {"sdp": elsewhere(route.request.post_data_json)}
        answer = route.fetch(post_data=json.dumps(offer))
        content = answer.json()
        route.fulfill(response=answer, json=content | {"sdp": elsewhere(content)})

    with watched(browser, bot.url) as page:
        page.page.route("**/api/offer", nowhere)
        page.open()
        press_talk(page)
        page.until_transcript("a WebSocket takes its place")
        assert seconds_until(page, "WebRTC does not get through") < SECONDS
        page.until_transcript("Owen.")
        page.hang_up()


def elsewhere(description: dict[str, Any]) -> str:
    """A session description whose candidates are in a network for documentation."""
    pattern = r"^(a=candidate:\S+ \d \S+ \d+) \S+ "
    return re.sub(pattern, r"\1 192.0.2.1 ", description["sdp"], flags=re.M)


def test_cancel_while_the_bot_does_not_answer(browser: Browser, bot: TalkProcess) -> None:
    with watched(browser, bot.url, OPENED, CANCEL_DURING_HANG_UP) as page:
        answer = {"sdp": "", "type": "answer", "pc_id": "of no call"}
        page.page.route("**/api/offer", lambda route: route.fulfill(json=answer))
        page.open()
        press_talk(page)
        page.until_status("Cancelled")
        expect(page.page.get_by_role("button", name="Talk")).to_be_enabled()
        until_closed(page)
        assert page.problems == []


def test_an_offer_that_is_not_answered(browser: Browser, bot: TalkProcess) -> None:
    """The bot answers other requests: a WebSocket takes the place of WebRTC."""
    with watched(browser, bot.url) as page:
        page.page.route("**/api/offer", lambda route: None)
        page.open()
        press_talk(page)
        page.until_transcript("a WebSocket takes its place")
        page.page.wait_for_timeout(6_000)  # the page gives up the offer
        page.until_status("Talk now")
        page.hang_up()
        assert page.problems == []


def test_a_bot_that_answers_nothing_any_more(browser: Browser, bot: TalkProcess) -> None:
    with watched(browser, bot.url, OPENED) as page:
        page.open()
        for path in ("offer", "info"):
            page.page.route(f"**/api/{path}", lambda route: None)
        press_talk(page)
        page.until_banner("The bot is gone")
        assert seconds_until(page, "The bot is gone") < SECONDS
        until_closed(page)
        assert page.problems == []


def test_a_bot_that_hangs(browser: Browser) -> None:
    with TalkProcess("--model", "nano", "--max-sessions", "1") as bot:
        with watched(browser, bot.url) as page:
            page.open()
            with stopped(bot):
                press_talk(page)
                page.until_banner("The bot is gone")
                assert seconds_until(page, "The bot is gone") < SECONDS
            # The bot answers the offer now; the page hangs up, which frees the slot.
            page.talk().hang_up()
        with watched(browser, bot.url, NO_WEBRTC) as page:
            page.open().talk()
            with stopped(bot) as since:
                page.until_banner("The bot is gone")
                assert seconds_until(page, "The bot is gone", since) < SECONDS


@contextmanager
def stopped(bot: TalkProcess) -> Iterator[float]:
    """The process does nothing meanwhile; yields since when."""
    os.kill(bot.pid, signal.SIGSTOP)
    try:
        yield time.time()
    finally:
        os.kill(bot.pid, signal.SIGCONT)


def test_a_browser_that_stops_the_sound(browser: Browser, bot: TalkProcess) -> None:
    """The server is silent then; the call goes on."""
    suspend = "opened.filter((it) => it.suspend).forEach((context) => { %s context.suspend(); })"
    with watched(browser, bot.url, OPENED) as page:
        server = StandInServer(page)
        page.open()
        press_talk(page)
        until(page, lambda: server.frames > 10)
        page.page.evaluate(suspend % "")
        page.page.wait_for_timeout(500)
        sent = server.frames
        until(page, lambda: server.frames > sent + 10)
        expect(page.page.locator("#banner")).to_be_hidden()

        page.page.evaluate(suspend % "context.resume = async () => {};")
        page.until_banner("The browser has stopped the sound")
        page.page.wait_for_timeout(3_000)
        page.until_status("Talk now")
        page.page.evaluate("opened.forEach((it) => { delete it.resume; })")
        sent = server.frames
        until(page, lambda: server.frames > sent + 10)
        page.until_status("Talk now")

        server.answers = False
        page.until_banner("no sound gets through")
        until_closed(page)
        assert page.problems == []


def test_a_server_that_takes_no_calls_from_a_name(playwright: Playwright) -> None:
    """Without keys, a name may be anybody's."""
    with ServeProcess("--page", "--model", "nano") as server:
        url = server.url.replace("127.0.0.1", "gpu.example.com")
        options = (
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            "--host-resolver-rules=MAP gpu.example.com 127.0.0.1",
            f"--unsafely-treat-insecure-origin-as-secure={url}",
        )
        with browsing(playwright, *options) as browser, watched(browser, url) as page:
            page.open()
            page.until_banner(f"--api-key-file or --allow-origin {url}")
            press_talk(page)
            page.until_status("Not connected")
            page.until_banner(f"--api-key-file or --allow-origin {url}")
            assert page.problems == []


def test_the_page_of_a_server_with_keys(browser: Browser, bot: TalkProcess) -> None:
    """Keys that are wrong, a network that is down, and a session that does not open in time."""
    sockets: list[WebSocketRoute] = []
    closed: list[WebSocketRoute] = []

    def voices(route: Route) -> None:
        key = route.request.headers["authorization"]
        if key == "Bearer right":
            route.fulfill(json={"voices": ["NATF2", "NATM1"]})
        elif key == "Bearer wrong":
            route.fulfill(status=401, json={})
        else:
            route.abort()

    def session(websocket: WebSocketRoute) -> None:
        sockets.append(websocket)
        websocket.on_message(lambda message: None)
        websocket.on_close(lambda code, reason: closed.append(websocket))
        websocket.send(json.dumps({"type": "hello"}))

    with watched(browser, bot.url, OPENED) as page:
        info = page.page.request.get(f"{bot.url}/api/info").json()
        info |= {"server": "serve", "key_required": True, "voices": [], "voice": ""}
        page.page.route("**/api/info", lambda route: route.fulfill(json=info))
        page.page.route("**/v1/voices", voices)
        page.page.route_web_socket("**/v1/session", session)
        page.open("#voice=NATM1")
        expect(page.page.get_by_text("--transcribe")).to_be_hidden()
        key = page.page.get_by_label("Key of this server")
        for text, words in (("lost", "The bot is gone"), ("wrong", "does not know this key")):
            key.fill(text)
            key.blur()
            page.until_banner(words)
        key.fill("right")
        key.blur()
        expect(page.page.get_by_role("radio", name="NATM1")).to_be_checked()
        expect(page.page.locator("#banner")).to_be_hidden()
        assert "voice=NATM1" in page.page.url

        press_talk(page)
        until(page, lambda: len(sockets) == 1)
        page.page.get_by_role("button", name="Cancel").click()
        page.until_status("Cancelled")
        until(page, lambda: len(closed) == 1)
        until_closed(page)
        expect(page.page.locator("#banner")).to_be_hidden()
        press_talk(page)
        page.until_banner("no sound gets through")
        until(page, lambda: len(closed) == 2)
        until_closed(page)

        page.page.evaluate(
            "() => { Object.defineProperty(navigator, 'mediaDevices', { value: undefined }); }"
        )
        press_talk(page)
        page.until_banner("--ssl-certfile")
        assert page.problems == []


class GatedHub:
    """The Hub as it refuses gated weights, once it may answer."""

    def __enter__(self) -> GatedHub:
        self.may_answer = threading.Event()
        self.answered_at = 0.0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                hub.may_answer.wait(60)
                hub.answered_at = time.time()
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_HEAD = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def loading(*arguments: str, **variables: str) -> Iterator[TalkProcess]:
    """``personaplex talk``, without waiting for its model."""
    bot = TalkProcess(*arguments, **variables)
    with subprocess.Popen(
        bot.command, env=bot.variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield bot
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def test_gated_weights(browser: Browser, tmp_path: Any) -> None:
    variables = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": ""}
    with GatedHub() as hub, loading("--model", RELEASE, HF_ENDPOINT=hub.url, **variables) as bot:
        with watched(browser, bot.url) as page:
            for _ in range(300):
                try:
                    page.page.goto(bot.url)
                    break
                except Error:  # it does not listen yet
                    time.sleep(0.1)
            page.until_status(f"Loading {RELEASE}")
            hub.may_answer.set()
            page.until_banner("is gated")
            assert seconds_until(page, "is gated", hub.answered_at) < SECONDS
            assert page.page.get_by_role("button", name="Talk").is_disabled()
            assert "hf auth login" in page.page.locator("#banner").inner_text()


def test_the_bot_is_killed(browser: Browser) -> None:
    with TalkProcess("--model", "nano") as mortal, watched(browser, mortal.url) as page:
        page.open().talk()
        killed = time.time()
        os.kill(mortal.pid, signal.SIGKILL)
        page.until_banner("The bot is gone")
        assert seconds_until(page, "The bot is gone", killed) < SECONDS
