"""The controls of the page in a real Chromium: each changes what it says."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, FilePayload, expect

from tests.helpers.chromium import needs_chromium
from tests.helpers.servers import ServeProcess
from tests.talk.browsers import NO_WEBRTC, PERIOD_SECONDS, TalkPage
from tests.talk.processes import TalkProcess

pytestmark = [
    pytest.mark.browser,
    pytest.mark.page,
    pytest.mark.slow,
    needs_chromium,
]


def test_the_persona_changes_in_mid_call(opened: TalkPage) -> None:
    page = opened.talk().page
    opened.until_transcript("Owen.")
    page.get_by_label("and is called").fill("Grace")
    page.get_by_role("button", name="Change during the call").click()
    opened.until_transcript("new role or voice (NATF2)")
    opened.until_transcript("Grace.")  # the same question, another answer, in the same call
    page.get_by_role("radio", name="NATM1").check()
    opened.until_transcript("new role or voice (NATM1)")
    page.get_by_label("Tell it a fact").fill("The kitchen closes in ten minutes")
    page.get_by_role("button", name="Add").click()
    opened.until_transcript("NATM1", times=2)
    prompt = page.get_by_label("Prompt", exact=True).input_value()
    assert prompt.count("Information:") == 1
    assert prompt.endswith("12 Market Street. The kitchen closes in ten minutes.")
    opened.hang_up()


def test_say_and_hold(opened: TalkPage) -> None:
    page = opened.talk().page
    page.get_by_role("button", name="Mute").click()  # the question would cut the text
    page.get_by_label("Have it say").fill("One moment please.")
    page.get_by_role("button", name="Say", exact=True).click()
    opened.until_transcript("One moment please.")
    page.get_by_role("button", name="Muted").click()
    opened.until_transcript("Owen.")
    page.wait_for_timeout(1500)  # the answer ends
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("button", name="Release").wait_for()
    answers = opened.count("Owen")
    page.wait_for_timeout(1000 * (PERIOD_SECONDS + 1))  # the question is asked again
    assert opened.count("Owen") == answers
    page.get_by_role("button", name="Release").click()
    opened.until_transcript("Owen", times=answers + 1)
    opened.hang_up()


def test_sampling_acts_in_mid_call_and_stays_in_the_address(opened: TalkPage) -> None:
    page = opened.talk().page
    page.get_by_role("heading", name="Sampling").click()
    page.get_by_label("Freedom of the words").fill("1.5")
    page.get_by_label("Candidates for words").fill("100")
    page.get_by_text("Sampling changed").wait_for()
    assert "temperature_text=1.5" in page.url and "top_k_text=100" in page.url
    opened.hang_up()
    page.reload()
    opened.until_status("Ready")
    page.get_by_role("heading", name="Sampling").click()
    expect(page.get_by_label("Freedom of the words")).to_have_value("1.5")


def test_muting_sends_silence(opened: TalkPage, tmp_path: Path) -> None:
    page = opened.talk().page
    page.get_by_role("button", name="Mute").click()
    page.wait_for_timeout(1000 * (PERIOD_SECONDS + 1))
    voices, rate = soundfile.read(opened.download("Stereo WAV", tmp_path / "call.wav"))
    assert np.abs(voices[-PERIOD_SECONDS * rate :, 0]).max() < 1e-3
    opened.hang_up()


# A headset that also records may run at a rate below the model's.
SLOW_AUDIO = """
window.AudioContext = class extends AudioContext {
  constructor(options) {
    super({ ...options, sampleRate: 16000 });
  }
};
"""


@pytest.mark.parametrize("audio", ["", SLOW_AUDIO], ids=["48 kHz", "16 kHz"])
def test_without_webrtc_a_websocket_takes_its_place(
    browser: Browser, bot: TalkProcess, tmp_path: Path, audio: str
) -> None:
    with TalkPage(browser, bot.url) as page:
        page.page.add_init_script(NO_WEBRTC)
        page.page.add_init_script(audio)
        page.open().talk()
        page.until_transcript("a WebSocket takes its place")
        begun = time.monotonic()
        page.until_transcript("Owen.")
        heard = time.monotonic() - begun
        voices, rate = soundfile.read(page.download("Stereo WAV", tmp_path / "call.wav"))
        assert len(voices) > 0.9 * heard * rate
        page.hang_up()
        assert page.foreign == []


def test_a_prompt_beyond_the_window_and_a_file_with_a_foreign_name(
    browser: Browser, bot: TalkProcess
) -> None:
    size = {"text": 1900, "voice": 50, "frames": 2000, "limit": 2999, "window": 1499}
    with TalkPage(browser, bot.url) as page:
        page.page.route("**/api/prompt", lambda route: route.fulfill(json=size))
        page.page.route("**/api/voices?*", lambda route: route.fulfill(json={"voices": ["voice"]}))
        page.open()
        expect(page.page.locator("#tokens")).to_contain_text("remembers nothing of the call")
        file: FilePayload = {"name": "голос.wav", "mimeType": "audio/wav", "buffer": b"RIFF"}
        with page.page.expect_request("**/api/voices?*") as added:
            page.page.locator("#voice-file").set_input_files(file)
        assert "name=voice&" in added.value.url
        expect(page.page.get_by_role("radio", name="voice")).to_be_checked()


def test_the_keyboard(opened: TalkPage) -> None:
    page = opened.page
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    opened.until_status("Talk now")
    page.keyboard.press("m")
    page.get_by_role("button", name="Muted").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("t")  # letters in a field are letters
    assert page.get_by_label("Have it say").input_value() == "t"
    page.get_by_label("Have it say").blur()
    page.keyboard.press("t")
    opened.until_status("You hung up.")


def test_the_page_of_a_server(browser: Browser) -> None:
    with ServeProcess("--page", "--model", "nano") as server, TalkPage(browser, server.url) as page:
        page.open().talk()
        page.page.get_by_label("Have it say").fill("One moment please.")
        page.page.get_by_role("button", name="Say", exact=True).click()
        page.until_transcript("please.")
        steered = page.page.locator("#steered")
        expect(steered).to_have_text("Said")
        # The server takes one change at a time, and one a second.
        for voice in ("NATM1", "NATF2"):
            page.page.get_by_role("radio", name=voice).check()
        page.until_transcript("new role or voice (NATM1)")
        page.until_transcript("new role or voice (NATF2)")
        expect(steered).to_have_text("The new role is in effect")
        expect(page.page.get_by_role("radio", name="NATF2")).to_be_checked()
        expect(page.page.locator("#banner")).to_be_hidden()
        page.hang_up()
        assert page.foreign == [] and page.problems == []
