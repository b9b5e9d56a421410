"""The page in a real Chromium whose microphone plays a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from playwright.sync_api import Browser, Page, Playwright, Route, sync_playwright

from tests.golden_data import CHECKPOINT
from tests.helpers.bots import BotProcess
from tests.helpers.chromium import PROBE, browsing, needs_chromium, with_microphone

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.browser,
    pytest.mark.serial,
    pytest.mark.slow,
    needs_chromium,
]

GREETING = "Good morning, what would you like to learn today?"
# 16-bit full scale is 1; the noise floor of Opus and of Chromium's resampling is far below.
AUDIBLE = 0.003
MIC_RATE = 48_000


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds of 100 ms tones at irregular intervals, so that delays are unambiguous.

    Intervals are 700 to 930 ms.
    """
    random = np.random.default_rng(7)
    sound = np.zeros(20 * MIC_RATE, dtype=np.float32)
    tone = np.sin(2 * np.pi * 1000 * np.arange(MIC_RATE // 10) / MIC_RATE) * 0.5
    start = MIC_RATE // 2
    while start + len(tone) < len(sound):
        sound[start : start + len(tone)] = tone
        start += int(random.uniform(0.70, 0.93) * MIC_RATE)
    path = tmp_path_factory.mktemp("microphone") / "tones.wav"
    soundfile.write(path, sound, MIC_RATE, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question of Piper's voice joe, which never called in training; every twelve seconds."""
    spoken, rate = soundfile.read(HERE / "data" / "what_is_on_the_menu.flac", dtype="float32")
    sound = np.zeros(12 * rate, dtype=np.float32)
    sound[3 * rate : 3 * rate + len(spoken)] = spoken
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    soundfile.write(path, soxr.resample(sound, rate, MIC_RATE), MIC_RATE, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


# The page plays without a click. Host candidates would else be mDNS names, which do not resolve
# here.
ARGUMENTS = (
    "--autoplay-policy=no-user-gesture-required",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
)


@pytest.fixture(scope="module")
def browser(playwright: Playwright, microphone: Path) -> Iterator[Browser]:
    with browsing(playwright, *ARGUMENTS, *with_microphone(microphone)) as chromium:
        yield chromium


@contextmanager
def talking(browser: Browser, bot: BotProcess) -> Iterator[Page]:
    """The bot's page, connected."""

    def only_the_bot(route: Route) -> None:
        # Requests to any other server are blocked.
        if re.search(r"/assets/daily-esm-[^/]*\.js$", route.request.url):
            route.fulfill(
                body=(HERE / "daily_devices.js").read_text(), content_type="text/javascript"
            )
        elif route.request.url.startswith((bot.url, "blob:", "data:")):
            route.continue_()
        else:
            route.abort()

    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.add_init_script(path=PROBE)
        page.route("**/*", only_the_bot)
        page.goto(f"{bot.url}/client/")
        # The page opens the microphone by itself and ignores "Connect" before that.
        page.get_by_role("button", name="Mute microphone").wait_for()
        page.get_by_role("button", name="Connect", exact=True).click()
        page.get_by_role("button", name="Disconnect", exact=True).wait_for()
        yield page
        page.get_by_role("button", name="Disconnect", exact=True).click()
        page.get_by_role("button", name="Connect", exact=True).wait_for()


def listen(page: Page, seconds: float) -> np.ndarray:
    """Peaks over the next seconds, from the agent's first sound: time, microphone, agent [n, 3]."""
    page.wait_for_function(f"probe.rows.some((row) => row[2] > {AUDIBLE})")
    start = page.evaluate("probe.rows.length")
    count = round(seconds * MIC_RATE / 128)
    page.wait_for_function(
        f"probe.rows.length >= {start + count}", timeout=(seconds + 30) * 1000, polling=250
    )
    return np.array(page.evaluate(f"probe.rows.slice({start}, {start + count})"))


def longest_silence(times: np.ndarray, peaks: np.ndarray) -> float:
    heard = times[peaks > AUDIBLE]
    return float(np.diff(heard, prepend=times[0], append=times[-1]).max())


def onsets(times: np.ndarray, peaks: np.ndarray, quiet: float = 0.15) -> np.ndarray:
    """Times at which a sound starts after at least ``quiet`` seconds of silence."""
    heard = times[peaks > 0.1]
    return heard[np.diff(heard, prepend=-1.0) > quiet]


def test_the_agents_audio_has_no_gaps_and_its_words_are_shown(browser: Browser) -> None:
    with (
        # The tiny checkpoint outputs noise without pauses, so any gap is a transport's.
        BotProcess("bots.assistant", "--model", str(CHECKPOINT), "--greeting", GREETING) as bot,
        talking(browser, bot) as page,
    ):
        # The tiny vocabulary has no whole words, and the page inserts spaces between pieces. A word
        # that the tones of the caller have silenced is said again.
        page.wait_for_function(
            "words => new RegExp(words).test(document.body.innerText.replace(/\\s/g, ''))",
            arg="".join(f"(?:{re.escape(word)})+" for word in GREETING.split()),
        )
        peaks = listen(page, 10.0)
    times, microphone, agent = peaks.T
    gap = longest_silence(times, agent)
    print(f"agent: longest silence in 10 s {gap * 1e3:.0f} ms, median peak {np.median(agent):.3f}")
    assert microphone.max() > 0.3, "the microphone does not play the tones"
    assert gap <= 0.2


def test_a_spoken_question_is_answered_in_the_page(playwright: Playwright, question: Path) -> None:
    """The bundled small model understands the question and lists the menu."""
    with (
        browsing(playwright, *ARGUMENTS, *with_microphone(question)) as browser,
        BotProcess("bots.drive_thru", "--model", "nano") as bot,
        talking(browser, bot) as page,
    ):
        page.wait_for_function(
            "() => /classic[^]*shakshuka/i.test(document.body.innerText)", timeout=60_000
        )
        peaks = listen(page, 1.0)
    assert peaks[:, 2].max() > AUDIBLE


def test_a_tone_comes_back_in_time(browser: Browser) -> None:
    """Delay from tone in to tone out, both measured by one AudioWorklet in the page.

    Includes Chromium's encoder, the network, aiortc, the service's 80 ms frames, playout and
    Chromium's jitter buffer. Excludes the sound card and the model's step.
    """
    with BotProcess("tests.bots.loopback_assistant") as bot, talking(browser, bot) as page:
        times, microphone, agent = listen(page, 20.0).T
    went_in, came_out = onsets(times, microphone), onsets(times, agent)
    following = np.searchsorted(came_out, went_in)
    returned = following < len(came_out)
    delays = (came_out[following[returned]] - went_in[returned]) * 1e3
    p50, p95 = np.percentile(delays, [50, 95])
    print(
        f"delay over {len(delays)} tones: p50 {p50:.0f} ms, p95 {p95:.0f}, max {delays.max():.0f}"
    )
    assert len(delays) >= 16
    assert p95 <= 250
