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
from playwright.sync_api import Browser, Error, Playwright, Route

from tests.helpers.chromium import browsing, needs_chromium
from tests.talk.browsers import NO_WEBRTC, NO_WEBSOCKET, TalkPage
from tests.talk.processes import TalkProcess

pytestmark = [
    pytest.mark.browser,
    pytest.mark.serial,
    pytest.mark.slow,
    needs_chromium,
]
SECONDS = 3.0
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
# When each message of the page appeared, and when Talk was pressed, in ms of the wall clock.
WATCH = """
window.appeared = {};
window.pressed = 0;
addEventListener("click", (event) => {
  if (event.target.id === "talk") window.pressed = Date.now();
}, true);
addEventListener("DOMContentLoaded", () => {
  const [banner, hint] = ["banner", "hint"].map((id) => document.getElementById(id));
  new MutationObserver(() => {
    if (!banner.hidden) window.appeared[banner.textContent] ??= Date.now();
    window.appeared[hint.textContent] ??= Date.now();
  }).observe(document.body, { subtree: true, childList: true, attributes: true });
});
"""


@contextmanager
def watched(browser: Browser, url: str, *scripts: str) -> Iterator[TalkPage]:
    with TalkPage(browser, url) as page:
        for script in (WATCH, *scripts):
            page.page.add_init_script(script)
        yield page


def press_talk(page: TalkPage) -> None:
    page.page.get_by_role("button", name="Talk").click()


def seconds_until(page: TalkPage, words: str, since: float | None = None) -> float:
    """How long a message took, from a wall clock time or from the press of Talk."""
    appeared = page.page.evaluate("appeared")
    [at] = [at for text, at in appeared.items() if words in text][:1]
    took = at / 1000 - (page.page.evaluate("pressed") / 1000 if since is None else since)
    print(f"{words!r} after {took:.2f} s")
    return float(took)


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--use-fake-device-for-media-stream"], "does not let this page use the microphone"),
        (["--use-fake-ui-for-media-stream"], "No microphone was found"),
    ],
    ids=["denied", "missing"],
)
def test_no_microphone(
    playwright: Playwright, bot: TalkProcess, arguments: list[str], words: str
) -> None:
    with browsing(playwright, *arguments) as browser, watched(browser, bot.url) as page:
        page.open()
        press_talk(page)
        page.until_banner(words)
        assert seconds_until(page, words) < SECONDS


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
        yield bot
        process.terminate()


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
