"""Answers to spoken questions: as they are heard, and as the page measures and records them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from playwright.sync_api import Browser

from tests.helpers.chromium import PROBE, needs_chromium
from tests.talk.browsers import TalkPage
from tests.talk.processes import TalkProcess

pytestmark = [
    pytest.mark.browser,
    pytest.mark.serial,
    pytest.mark.slow,
    needs_chromium,
]
ANSWERS = 4
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


def spans(peaks: npt.NDArray[np.float64], rate: float, threshold: float) -> list[Span]:
    """Start and end of each turn, in seconds; pauses up to 0.3 s belong to it."""
    found: list[Span] = []
    for at in np.flatnonzero(peaks > threshold) / rate:
        if found and at - found[-1][1] < 0.3:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    return [span for span in found if span[1] - span[0] > 0.05]


def gaps(caller: list[Span], agent: list[Span]) -> list[Span]:
    """From the end of each turn of the caller to the next onset of the agent, within 5 s."""
    found = []
    for _, stop in caller:
        onsets = [start for start, _ in agent if 0 < start - stop < 5]
        found += [(stop, onset) for onset in onsets[:1]]
    return found


def differences(some: list[Span], others: list[Span]) -> list[float]:
    """By how much the lengths of the same gaps differ, in seconds; the last ones are the same."""
    shift = others[-1][0] - some[-1][0]  # of the two clocks
    pairs = [
        (one, other) for one in some for other in others if abs(one[0] + shift - other[0]) < 0.5
    ]
    return [abs((one[1] - one[0]) - (other[1] - other[0])) for one, other in pairs]


def test_answers_are_measured_and_recorded_as_they_are_heard(
    browser: Browser, bot: TalkProcess, tmp_path: Path
) -> None:
    # The probe's AudioWorklet is a blob, which the page's own policy would block.
    with TalkPage(browser, bot.url, bypass_csp=True) as page:
        page.page.add_init_script(path=PROBE)
        page.page.add_init_script(PROBED_MICROPHONE)
        page.open().talk()
        page.until_transcript("Owen.", times=ANSWERS)
        page.page.wait_for_timeout(1000)
        page.hang_up()
        probed = np.array(page.page.evaluate("probe.rows"))
        report = json.loads(page.download("JSON", tmp_path / "call.json").read_text())
        voices, rate = soundfile.read(page.download("Stereo WAV", tmp_path / "call.wav"))
        assert page.foreign == [] and page.problems == []

    assert rate == 24_000 and voices.shape[1] == 2
    caller, agent = (spans(np.abs(voices[:, side]), rate, 0.02) for side in (0, 1))
    recorded = gaps(caller, agent)
    measured = [(response["stop"], response["onset"]) for response in report["response_times"]]
    caller, agent = (spans(probed[:, side], 48_000 / 128, 0.02) for side in (1, 2))
    heard = gaps(caller, agent)
    of_meter = differences(measured, recorded)
    of_recording = differences(recorded, heard)
    for name, values in (("meter", measured), ("recording", recorded), ("probe", heard)):
        print(f"{name}: response times {[round(stop - start, 3) for start, stop in values]} s")
    print(f"meter and recording differ by {1000 * np.median(of_meter):.0f} ms at the median, ")
    print(f"recording and probe by {1000 * max(of_recording):.0f} ms at most")
    assert len(of_meter) >= ANSWERS - 1 and len(of_recording) >= ANSWERS - 1
    assert np.median(of_meter) <= 0.04
    assert max(of_recording) <= 0.05  # both voices in step
    assert report["model"] == "nano"
    assert "Owen" in " ".join(line["text"] for line in report["transcript"])
