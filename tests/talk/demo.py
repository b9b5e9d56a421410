"""Records the demonstration: ``python -m tests.talk.demo demo.mp4``.

Chromium, ``personaplex talk`` with nano, a caller whom espeak-ng speaks: three questions, an
interruption, a given sentence and another name in the running call. The picture is that of the
browser; the sound is the page's own recording, the caller more on the left and the agent more on
the right. It takes a minute of a machine that has nothing else to do, and needs no network.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from playwright.sync_api import Page, sync_playwright

from pipecat_personaplex.constants import SAMPLE_RATE
from tests.helpers.chromium import browsing, with_microphone
from tests.talk.browsers import TalkPage
from tests.talk.processes import TalkProcess
from training.nano.espeak import Manner, speaker

SIZE = {"width": 1180, "height": 720}
FRAMES_A_SECOND = 15
CALLER = Manner("en-us+f2", rate=160)
GREETING = "Hello, what can I get you?"
# Seconds of the call at which the caller begins to speak, and the words.
QUESTIONS = (
    (6.0, "What is on the menu?"),
    (13.0, "How much is the classic?"),
    (20.0, "What drinks do you have?"),
    (22.8, "What is your name?"),  # while the agent answers
    (36.0, "What is your name?"),
    (42.0, "Thank you, goodbye."),
)
SECONDS = 48.0
_SOUND_RATE = 48_000
# How much of each voice is on the other side: two voices at two ears tire a listener.
_BLEND = 0.35

_VIDEO = {
    ".mp4": ("libx264", {"crf": "26", "preset": "veryfast", "tune": "animation"}),
    ".webm": ("libvpx-vp9", {"crf": "36", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
}
_AUDIO = {".mp4": "aac", ".webm": "libopus"}

Sound = npt.NDArray[np.float32]


def write_caller(path: Path) -> Path:
    """The microphone of the whole call."""
    sound = np.zeros(int((SECONDS + 12) * SAMPLE_RATE), dtype=np.float32)
    for at, words in QUESTIONS:
        pcm = speaker().say(words, CALLER).pcm
        start = int(at * SAMPLE_RATE)
        sound[start : start + len(pcm)] = 0.7 * pcm / np.abs(pcm).max()
    soundfile.write(path, soxr.resample(sound, SAMPLE_RATE, _SOUND_RATE), _SOUND_RATE)
    return path


class Film:
    """Pictures of a page while it changes, with the time of each."""

    def __init__(self, page: Page):
        self.pictures: list[tuple[float, bytes]] = []
        self._session = page.context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._add)
        self._session.send(
            "Page.startScreencast", {"format": "jpeg", "quality": 80, "everyNthFrame": 3}
        )

    def _add(self, frame: dict[str, Any]) -> None:
        self._session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})
        self.pictures.append((frame["metadata"]["timestamp"], base64.b64decode(frame["data"])))

    def stop(self) -> None:
        self._session.send("Page.stopScreencast")


def act(page: TalkPage) -> Film:
    """The call, as its user has it."""
    view = page.page
    view.get_by_label("Opens the call with").fill(GREETING)
    film = Film(view)
    view.wait_for_timeout(1500)
    page.talk()
    started = view.evaluate("performance.now()")

    def until(second: float) -> None:
        view.wait_for_timeout(
            max(0.0, started + 1000 * second - view.evaluate("performance.now()"))
        )

    until(28.0)
    view.get_by_label("Have it say").press_sequentially("One moment, please.", delay=60)
    view.get_by_role("button", name="Say", exact=True).click()
    until(32.0)
    view.get_by_label("and is called").fill("Grace")
    view.get_by_role("button", name="Change during the call").click()
    view.wait_for_timeout(1000)
    view.evaluate("scrollTo({ top: 0, behavior: 'smooth' })")
    until(SECONDS - 2)
    page.hang_up()
    view.wait_for_timeout(1000)
    film.stop()
    return film


def write_film(
    path: Path, pictures: list[tuple[float, bytes]], sound: Sound, sound_at: float
) -> None:
    """Write pictures and sound.

    Args:
        path: An .mp4 or .webm file.
        pictures: Time in seconds of each picture, and the picture as JPEG.
        sound: float32 [samples, 2] at 48 kHz.
        sound_at: Time at which the sound begins.
    """
    first = pictures[0][0]
    silence = np.zeros((round((sound_at - first) * _SOUND_RATE), 2), dtype=np.float32)
    sound = np.concatenate([silence, sound])
    with av.open(str(path), "w") as film:
        name, options = _VIDEO[path.suffix]
        video = film.add_stream(name, rate=FRAMES_A_SECOND, options=options)
        video.width, video.height, video.pix_fmt = SIZE["width"], SIZE["height"], "yuv420p"
        audio = film.add_stream(_AUDIO[path.suffix], rate=_SOUND_RATE)
        audio.layout = "stereo"
        times = np.array([at - first for at, _ in pictures])
        shown = -1
        for index in range(int((times[-1] + 0.5) * FRAMES_A_SECOND)):
            newest = int(np.searchsorted(times, index / FRAMES_A_SECOND, side="right")) - 1
            if newest != shown:
                with av.open(io.BytesIO(pictures[newest][1])) as picture:
                    still = next(picture.decode(video=0))
                # A film's colours have another range than JPEG's.
                still = still.reformat(
                    SIZE["width"],
                    SIZE["height"],
                    "yuv420p",
                    src_color_range="JPEG",
                    dst_color_range="MPEG",
                )
                shown = newest
            still.pts, still.time_base = index, Fraction(1, FRAMES_A_SECOND)
            film.mux(video.encode(still))
        film.mux(video.encode(None))
        samples = np.ascontiguousarray(sound.T)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = _SOUND_RATE, 0, Fraction(1, _SOUND_RATE)
        film.mux(audio.encode(frame))
        film.mux(audio.encode(None))


def main(path: Path) -> None:
    """Act and write the film."""
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        microphone = write_caller(folder / "caller.wav")
        with (
            TalkProcess("--model", "nano", "--max-sessions", "1") as bot,
            browsing(playwright, *with_microphone(microphone)) as browser,
            TalkPage(browser, bot.url, viewport=SIZE, color_scheme="light") as page,
        ):
            film = act(page.open())
            report = json.loads(page.download("JSON", folder / "call.json").read_text())
            voices, rate = soundfile.read(
                page.download("Stereo WAV", folder / "call.wav"), dtype="float32"
            )
    voices = soxr.resample(voices, rate, _SOUND_RATE)
    blended = (1 - _BLEND) * voices + _BLEND * voices[:, ::-1]
    started = datetime.fromisoformat(report["started"]).timestamp()
    write_film(path, film.pictures, blended, started)
    for line in report["transcript"]:
        print(f"{line['seconds']:6.2f}  {line['side']}: {line['text']}")
    seconds = film.pictures[-1][0] - film.pictures[0][0]
    print(f"{path}: {seconds:.0f} s, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).suffix not in _VIDEO:
        sys.exit("usage: python -m tests.talk.demo FILE.mp4 (or .webm)")
    main(Path(sys.argv[1]))
