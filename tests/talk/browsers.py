"""The page of personaplex talk in a browser, and what its microphone plays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from playwright.sync_api import Browser, Page, Request, expect

QUESTION = Path(__file__).parent / "data" / "what_is_your_name.flac"
PERIOD_SECONDS = 6
_RATE = 48_000
# Long, because other processes may have the cores.
PATIENCE_MS = 60_000
_ATTEMPTS = 30
# WebRTC finds no address, and no WebSocket connects.
NO_WEBRTC = "RTCPeerConnection.prototype.setLocalDescription = async () => {};"
NO_WEBSOCKET = (
    "window.WebSocket = class extends WebSocket { constructor() { super('ws://127.0.0.1:9'); } };"
)


def write_microphone(path: Path) -> Path:
    """A question, which repeats every six seconds."""
    spoken, rate = soundfile.read(QUESTION, dtype="float32")
    sound = np.zeros(PERIOD_SECONDS * rate, dtype=np.float32)
    sound[rate : rate + len(spoken)] = spoken
    soundfile.write(path, soxr.resample(sound, rate, _RATE), _RATE, subtype="PCM_16")
    return path


class TalkPage:
    """The page as a person uses it.

    Attributes:
        page: Playwright's page.
        foreign: Addresses of requests to other servers.
        problems: Exceptions and error messages of the page's scripts.
    """

    def __init__(self, browser: Browser, url: str, **options: Any):
        self._context = browser.new_context(accept_downloads=True, **options)
        self._context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self._context.new_page()
        self.url = url
        self.foreign: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _note(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.foreign.append(request.url)

    def __enter__(self) -> TalkPage:
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def open(self, address: str = "") -> TalkPage:
        self.page.goto(f"{self.url}/{address}")
        self.until_status("Ready")
        return self

    def talk(self) -> TalkPage:
        """Begin a call. The slot of a test that failed in its call is free a little later."""
        self.page.get_by_role("button", name="Talk").click()
        live = self.page.locator("#status", has_text="Talk now")
        taken = self.page.locator("#banner:not([hidden])", has_text="Every slot is taken")
        for _ in range(_ATTEMPTS):
            expect(live.or_(taken).first).to_be_visible(timeout=PATIENCE_MS)
            if live.is_visible():
                return self
            self.page.wait_for_timeout(1_000)
            self.page.get_by_role("button", name="Try again").click()
        raise AssertionError("the slot of the call before is still taken")

    def hang_up(self) -> None:
        self.page.get_by_role("button", name="Hang up").click()
        self.until_status("You hung up.")

    # The page's policy forbids eval, and with it Playwright's wait_for_function.

    def until_status(self, text: str) -> None:
        expect(self.page.locator("#status")).to_contain_text(text, timeout=PATIENCE_MS)

    def until_transcript(self, text: str, times: int = 1) -> None:
        """Wait until the transcript contains a text so many times."""
        pattern = re.compile(f"({re.escape(text)}.*){{{times}}}", re.DOTALL)
        expect(self.page.locator("#transcript")).to_contain_text(pattern, timeout=PATIENCE_MS)

    def until_banner(self, text: str) -> None:
        """Wait for a message above the page."""
        expect(self.page.locator("#banner:not([hidden])")).to_contain_text(
            text, timeout=PATIENCE_MS
        )

    def download(self, button: str, path: Path) -> Path:
        """Press a button, and save what it downloads."""
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).click()
        download.value.save_as(path)
        return path

    def count(self, text: str) -> int:
        return self.page.locator("#transcript").inner_text().count(text)
