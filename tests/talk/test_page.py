"""The page in a real Chromium: a spoken question, the controls, and what may go wrong."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Playwright, expect, sync_playwright

from tests.helpers.chromium import PROBE, browsing, needs_chromium, with_microphone
from tests.helpers.servers import ServeProcess
from tests.talk.browsers import PERIOD_SECONDS, TalkPage, write_microphone
from tests.talk.processes import TalkProcess

pytestmark = [
    pytest.mark.browser,
    pytest.mark.serial,
    pytest.mark.slow,
    needs_chromium,
]
Span = tuple[float, float]
# The probe hears the page's microphone too.
PROBED_MICROPHONE = """
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (constraints) => {
  const stream = await open(constraints);
  window.probe.listen(0, stream);
  return stream;
};
"""
# WebRTC finds no address, and no WebSocket connects.
NO_WEBRTC = "RTCPeerConnection.prototype.setLocalDescription = async () => {};"
NO_WEBSOCKET = (
    "window.WebSocket = class extends WebSocket { constructor() { super('ws://127.0.0.1:9'); } };"
)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    microphone = write_microphone(tmp_path_factory.mktemp("microphone") / "question.wav")
    with browsing(playwright, *with_microphone(microphone)) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def bot() -> Iterator[TalkProcess]:
    with TalkProcess("--model", "nano", "--max-sessions", "1") as bot:
        yield bot


@pytest.fixture
def opened(browser: Browser, bot: TalkProcess) -> Iterator[TalkPage]:
    with TalkPage(browser, bot.url) as page:
        yield page.open()
        assert page.foreign == [] and page.problems == []


def download(page: TalkPage, button: str) -> bytes:
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name=button).click()
    return Path(download.value.path()).read_bytes()


def spans(peaks: npt.NDArray[np.float64], rate: float, threshold: float) -> list[Span]:
    """Start and end of each turn, in seconds; pauses up to 0.3 s belong to it."""
    found: list[Span] = []
    for at in np.flatnonzero(peaks > threshold) / rate:
        if found and at - found[-1][1] < 0.3:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    return [span for span in found if span[1] - span[0] > 0.05]


def gaps(caller: list[Span], agent: list[Span]) -> list[float]:
    """From the end of each turn of the caller to the next onset of the agent, within 5 s."""
    found = []
    for _, stop in caller:
        onsets = [start for start, _ in agent if 0 < start - stop < 5]
        found += onsets[:1] and [onsets[0] - stop]
    return found


def test_a_spoken_question_is_answered_measured_and_recorded(
    browser: Browser, bot: TalkProcess
) -> None:
    # The probe's AudioWorklet is a blob, which the page's own policy would block.
    with TalkPage(browser, bot.url, bypass_csp=True) as opened:
        opened.page.add_init_script(path=PROBE)
        opened.page.add_init_script(PROBED_MICROPHONE)
        opened.open().talk()
        opened.until_transcript("Owen.")
        opened.page.wait_for_timeout(1000 * 2 * PERIOD_SECONDS)  # two more
        opened.hang_up()
        probed = np.array(opened.page.evaluate("probe.rows"))
        report = json.loads(download(opened, "JSON"))
        voices, rate = soundfile.read(io.BytesIO(download(opened, "Stereo WAV")))
        assert opened.foreign == [] and opened.problems == []

    assert rate == 24_000 and voices.shape[1] == 2
    caller, agent = (spans(np.abs(voices[:, side]), rate, 0.02) for side in (0, 1))
    recorded = gaps(caller, agent)
    measured = [response["seconds"] for response in report["response_times"]]
    caller, agent = (spans(probed[:, side], 48_000 / 128, 0.02) for side in (1, 2))
    heard = gaps(caller, agent)
    print(f"response times in s: meter {measured}, recording {recorded}, probe {heard}")
    assert abs(np.median(measured) - np.median(recorded)) <= 0.04
    assert abs(np.median(recorded) - np.median(heard)) <= 0.05
    assert report["model"] == "nano" and any(
        "Owen" in line["text"] for line in report["transcript"]
    )


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
    assert prompt.endswith("$10.25). The kitchen closes in ten minutes.")
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


def test_muting_sends_silence(opened: TalkPage) -> None:
    page = opened.talk().page
    page.get_by_role("button", name="Mute").click()
    page.wait_for_timeout(1000 * (PERIOD_SECONDS + 1))
    voices, rate = soundfile.read(io.BytesIO(download(opened, "Stereo WAV")))
    assert np.abs(voices[-PERIOD_SECONDS * rate :, 0]).max() < 1e-3
    opened.hang_up()


def test_every_slot_taken(opened: TalkPage, browser: Browser, bot: TalkProcess) -> None:
    opened.talk()
    with TalkPage(browser, bot.url) as other:
        other.open().page.get_by_role("button", name="Talk").click()
        other.until_banner("Every slot is taken")
        opened.hang_up()
        other.page.get_by_role("button", name="Try again").click()
        other.until_status("Talk now")
        other.hang_up()


def test_without_webrtc_a_websocket_takes_its_place(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        page.page.add_init_script(NO_WEBRTC)
        page.open().talk()
        page.until_transcript("a WebSocket takes its place")
        page.until_transcript("Owen.")
        page.hang_up()
        assert page.foreign == []


def test_a_blocked_connection(browser: Browser, bot: TalkProcess) -> None:
    with TalkPage(browser, bot.url) as page:
        page.page.add_init_script(NO_WEBRTC + NO_WEBSOCKET)
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_banner("a firewall, a VPN or a proxy blocks WebRTC")


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
    with browsing(playwright, *arguments) as browser, TalkPage(browser, bot.url) as page:
        page.open().page.get_by_role("button", name="Talk").click()
        page.until_banner(words)


def test_a_model_that_cannot_be_loaded(browser: Browser, bot: TalkProcess) -> None:
    gated = "nvidia/personaplex-7b-v1 is gated: accept its licence"
    with TalkPage(browser, bot.url) as page:
        info = page.page.request.get(f"{bot.url}/api/info").json()
        loading = info | {"state": "loading"}
        answers = [loading, info | {"state": "failed", "failure": gated}]
        page.page.route("**/api/info", lambda route: route.fulfill(json=answers.pop(0)))
        page.page.goto(bot.url)
        page.until_status("Loading nano")
        page.until_banner(gated)
        assert page.page.get_by_role("button", name="Talk").is_disabled()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_the_page_is_accessible(browser: Browser, bot: TalkProcess, theme: str, width: int) -> None:
    size = {"width": width, "height": 800}
    with TalkPage(browser, bot.url, color_scheme=theme, viewport=size) as page:
        page.open()
        found = Axe().run(page.page)
        assert found.violations_count == 0, found.generate_report()
        # Nothing is wider than a telephone.
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width


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
        page.page.get_by_role("radio", name="NATM1").check()
        page.until_transcript("new role or voice (NATM1)")
        page.hang_up()
        assert page.foreign == [] and page.problems == []


def test_the_bot_is_killed(browser: Browser) -> None:
    with TalkProcess("--model", "nano") as mortal, TalkPage(browser, mortal.url) as page:
        page.open().talk()
        os.kill(mortal.pid, signal.SIGKILL)
        page.until_banner("The bot is gone")
