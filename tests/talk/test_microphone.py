"""The microphone: refused, missing, another one, and closed after the call; and the speaker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
from playwright.sync_api import Browser, Playwright, expect

from tests.helpers.chromium import browsing, needs_chromium
from tests.talk.processes import TalkProcess
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


# A headset that one can unplug, and the speakers that were set.
HEADSET = """
let devices = [{ kind: "audiooutput", deviceId: "headset", label: "Headset" }];
window.speakers = [];
HTMLMediaElement.prototype.setSinkId = async (id) => { window.speakers.push(id); };
navigator.mediaDevices.enumerateDevices = async () => devices;
window.unplug = () => {
  devices = [];
  navigator.mediaDevices.dispatchEvent(new Event("devicechange"));
};
"""


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


def test_after_a_call_its_recording_stays_and_nothing_else(
    browser: Browser, bot: TalkProcess, tmp_path: Path
) -> None:
    """Not a microphone that is allowed too late, nor what a refused call has opened."""
    full = {"detail": "all 1 sessions are taken"}
    with watched(browser, bot.url, OPENED) as page:
        page.open().talk()
        page.page.evaluate(
            "() => { window.asked = () => new Promise((allow) => { window.allow = allow; }); }"
        )
        page.page.locator("#microphone").dispatch_event("change")
        page.hang_up()
        page.page.evaluate("() => { window.asked = undefined; window.allow(); }")
        count = "opened.filter(({ kind }) => kind === 'audio').length"
        until(page, lambda: page.page.evaluate(count) == 2)
        until_closed(page)
        expect(page.page.locator("#banner")).to_be_hidden()
        page.page.route("**/api/offer", lambda route: route.fulfill(status=503, json=full))
        press_talk(page)
        page.until_banner("Every slot is taken")
        until_closed(page)
        voices, _ = soundfile.read(page.download("Stereo WAV", tmp_path / "call.wav"))
        assert len(voices) > 0
        report = json.loads(page.download("JSON", tmp_path / "call.json").read_text())
        kinds = [event["kind"] for event in report["events"]]
        assert (kinds[0], kinds[-1]) == ("connected", "ended")
        assert page.problems == []


def test_a_microphone_that_is_unplugged(browser: Browser, bot: TalkProcess) -> None:
    with watched(browser, bot.url, OPENED) as page:
        page.open().talk()
        page.page.evaluate(
            "opened.find(({ kind }) => kind === 'audio').dispatchEvent(new Event('ended'))"
        )
        page.until_banner("The microphone was disconnected")
        page.page.evaluate("opened.length = 0")
        page.page.locator("#microphone").dispatch_event("change")
        until(page, lambda: page.page.evaluate("opened.length") == 1)
        expect(page.page.locator("#status")).to_contain_text("Talk now")
        page.hang_up()
        assert page.problems == []


def test_a_microphone_that_is_chosen_while_the_call_connects(
    browser: Browser, bot: TalkProcess
) -> None:
    choose = """() => { window.asked = () => {
      const menu = document.getElementById("microphone");
      menu.selectedIndex = menu.options.length - 1;
      menu.dispatchEvent(new Event("change"));
      window.asked = undefined;
    }; }"""
    with watched(browser, bot.url, OPENED) as page:
        page.open().talk().hang_up()  # browsers name the microphones now
        page.page.evaluate(choose)
        page.talk()
        microphones = """opened.filter(({ kind, readyState }) => kind === "audio" &&
          readyState === "live").map((track) => track.getSettings().deviceId)"""
        chosen = page.page.locator("#microphone").input_value()
        assert chosen
        until(page, lambda: page.page.evaluate(microphones) == [chosen])
        page.hang_up()
        assert page.problems == []


def test_a_speaker_that_is_unplugged(browser: Browser, bot: TalkProcess) -> None:
    with watched(browser, bot.url, HEADSET) as page:
        page.open()
        menu = page.page.locator("#speaker")
        menu.select_option("Headset")
        page.page.evaluate("unplug()")
        page.until_banner("The speaker was disconnected")
        expect(menu).to_have_value("")
        assert page.page.evaluate("speakers") == ["headset", ""]
        page.page.get_by_role("button", name="Close this message").click()
        page.page.evaluate("unplug()")  # of another device
        page.page.wait_for_timeout(200)
        expect(page.page.locator("#banner")).to_be_hidden()
        assert page.problems == []
