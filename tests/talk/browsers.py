"""A real Chromium whose microphone plays a file, and the page in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from playwright.sync_api import Browser, Page, Playwright, Request

CHROMIUM = "/usr/bin/chromium"
QUESTION = Path(__file__).parent / "data" / "what_is_your_name.flac"
PERIOD_SECONDS = 6
_RATE = 48_000
# Long, because other processes may have the cores.
PATIENCE_MS = 60_000


def write_microphone(path: Path) -> Path:
    """A question, which repeats every six seconds."""
    spoken, rate = soundfile.read(QUESTION, dtype="float32")
    sound = np.zeros(PERIOD_SECONDS * rate, dtype=np.float32)
    sound[rate : rate + len(spoken)] = spoken
    soundfile.write(path, soxr.resample(sound, rate, _RATE), _RATE, subtype="PCM_16")
    return path


@contextmanager
def browsing(playwright: Playwright, *arguments: str) -> Iterator[Browser]:
    chromium = playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=["--no-sandbox", "--disable-background-networking", *arguments],
    )
    yield chromium
    chromium.close()


def with_microphone(microphone: Path) -> list[str]:
    return [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ]


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
        self.page.wait_for_function("document.querySelector('#status').textContent === 'Ready'")
        return self

    def talk(self) -> TalkPage:
        self.page.get_by_role("button", name="Talk").click()
        self.until_status("Talk now")
        return self

    def hang_up(self) -> None:
        self.page.get_by_role("button", name="Hang up").click()
        self.until_status("You hung up.")

    def until_status(self, text: str) -> None:
        self.page.wait_for_function(
            "text => document.querySelector('#status').textContent.includes(text)", arg=text
        )

    def until_transcript(self, text: str) -> None:
        self.page.wait_for_function(
            "text => document.querySelector('#transcript').innerText.includes(text)", arg=text
        )

    def until_banner(self, text: str, seconds: float = PATIENCE_MS / 1000) -> None:
        """Wait for a message above the page."""
        self.page.wait_for_function(
            "text => { const banner = document.querySelector('#banner');"
            " return !banner.hidden && banner.innerText.includes(text) }",
            arg=text,
            timeout=seconds * 1000,
        )

    def count(self, text: str) -> int:
        return self.page.locator("#transcript").inner_text().count(text)
