"""Every code block of README and docs runs, on the small checkpoint in place of the 7B."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.servers import ServeProcess

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "nvidia/personaplex-7b-v1"
# Blocks that other tests run: what this very run is made of; what takes minutes, and has a shorter
# run in tests/bench/test_run.py and tests/eval/test_command.py; what ends with its user, in
# tests/cli/test_serve.py.
ELSEWHERE = ("make ", "personaplex bench", "personaplex eval", "personaplex serve")


def blocks(language: str) -> list[str]:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)
    return [block for block in found if not block.startswith(ELSEWHERE)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("caller.wav", "owen.wav"):
        shutil.copy(VOICE_SAMPLE, tmp_path / name)
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_there_are_blocks_to_run() -> None:
    assert len(blocks("python")) == 6
    assert len(blocks("bash")) >= 2


def the_block(part: str) -> str:
    [block] = [block for block in blocks("python") if part in block]
    return block


def test_the_engine_in_a_program(folder: Path) -> None:
    code = the_block("engine.converse(").replace(MODEL, str(CHECKPOINT))
    out = run([sys.executable, "-W", "error", "-c", code], folder)
    assert "voices: NATF2, NATM1" in out
    assert "ended: closed" in out
    assert "(24000,)" in out


def test_the_engine_elsewhere(folder: Path) -> None:
    with ServeProcess() as one, ServeProcess() as other:
        code = the_block("RemoteEngine").replace("ws://engine-a:8998", one.ws_url)
        code = code.replace("ws://engine-b:8998", other.ws_url)
        out = run([sys.executable, "-c", code], folder)
    assert "voices: NATF2, NATM1" in out


def test_steering_a_session(folder: Path) -> None:
    out = run([sys.executable, "-W", "error", "-c", the_block("session.update_prompt(")], folder)
    assert "said 9 of 9 words" in out
    assert out.endswith("new prompt: in effect\n")


def test_steering_a_call_of_the_service(folder: Path) -> None:
    out = run([sys.executable, "-c", the_block("agent.say(")], folder)
    spoken = ["Hello, this is Anna. What can I get you?", "Thank you, bye bye!"]
    assert [line[8:] for line in out.splitlines() if line.startswith("spoken: ")] == spoken
    assert "closes in ten minutes" in out and "interrupted" not in out


def test_the_readme_shows_the_minimal_bot() -> None:
    """tests/bots/test_minimal.py runs it."""
    assert the_block("create_transport") == (ROOT / "bots" / "minimal.py").read_text()


@pytest.mark.skipif(find_spec("triton") is None, reason="without it a card keeps more")
def test_callers_that_fit(folder: Path) -> None:
    """The table's last column is what the code below it prints."""
    out = run([sys.executable, "-c", the_block("plan_engine")], folder)
    printed = re.findall(r"^([\d.]+) GiB free: (\d+) callers$", out, re.M)
    document = (ROOT / "docs" / "performance.md").read_text()
    table = re.findall(r"^\|.*\| ([\d.]+) GiB \|.*\| (\d+)(?:,[^|]*)? \|$", document, re.M)
    assert len(printed) == 5 and table == printed


@pytest.mark.parametrize("block", blocks("bash"))
def test_shell(block: str, folder: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", block.replace(MODEL, str(CHECKPOINT))], folder)
    made = {path.name for path in folder.iterdir()} - {"caller.wav", "owen.wav", "steering.txt"}
    assert made in ({"agent.wav", "agent.json"}, {"owen.pt"}, set())
