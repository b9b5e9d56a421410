"""Every code block of the README runs, on the small checkpoint in place of the 7B."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from aiortc import MediaStreamTrack, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from httpx import AsyncClient

from tests.golden_data import CHECKPOINT, VOICE_SAMPLE
from tests.helpers.bots import BotProcess
from tests.helpers.servers import ServeProcess

README = Path(__file__).parent.parent / "README.md"
MODEL = "nvidia/personaplex-7b-v1"
# What this very run is made of; what takes minutes, and has a shorter run in
# tests/bench/test_run.py; and what ends with its user: tests/cli/test_serve.py.
ELSEWHERE = ("make ", "personaplex bench", "personaplex serve")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.S | re.M)
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
    assert len(blocks("python")) == 4
    assert len(blocks("bash")) >= 2


@pytest.mark.parametrize("folder", ["engine", "models"])
def test_the_tree_names_every_module(folder: str) -> None:
    [tree] = re.findall(r"^```\n(pipecat_personaplex/\n.*?)^```", README.read_text(), re.S | re.M)
    named = set(re.findall(r"\w+\.py", tree))
    modules = {path.name for path in (README.parent / "pipecat_personaplex" / folder).glob("*.py")}
    assert modules - {"__init__.py"} <= named


def the_block(part: str) -> str:
    [block] = [block for block in blocks("python") if part in block]
    return block


def test_the_engine_in_a_program(folder: Path) -> None:
    code = the_block("engine.open_session(").replace(MODEL, str(CHECKPOINT))
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


async def test_a_bot(folder: Path) -> None:
    """Serves its page, and speaks to who connects as the page would."""
    script = folder / "bot.py"
    block = the_block("pipecat.pipeline")
    script.write_text(block.replace(MODEL, str(CHECKPOINT)))
    with BotProcess("bot", PYTHONPATH=str(folder)) as bot:
        async with AsyncClient(base_url=bot.url, timeout=20) as client:
            page = await client.get("/client/")
            assert page.status_code == 200
            heard = await first_words(client)
    assert np.abs(heard).max() > 100  # noise, but the agent's


@pytest.mark.skipif(find_spec("triton") is None, reason="without it a card keeps more")
def test_callers_that_fit(folder: Path) -> None:
    """The table's last column is what the code below it prints."""
    out = run([sys.executable, "-c", the_block("plan_engine")], folder)
    printed = re.findall(r"^([\d.]+) GiB free: (\d+) callers$", out, re.M)
    table = re.findall(
        r"^\|.*\| ([\d.]+) GiB \|.*\| (\d+)(?:,[^|]*)? \|$", README.read_text(), re.M
    )
    assert len(printed) == 5 and table == printed


async def first_words(client: AsyncClient) -> npt.NDArray[np.int16]:
    """Two seconds of what a caller hears who says nothing."""
    peer = RTCPeerConnection()
    track: asyncio.Future[MediaStreamTrack] = asyncio.get_running_loop().create_future()
    peer.on("track", track.set_result)
    peer.addTrack(AudioStreamTrack())
    try:
        await peer.setLocalDescription(await peer.createOffer())
        offer = {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}
        answer = (await client.post("/api/offer", json=offer)).raise_for_status().json()
        await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
        async with asyncio.timeout(30):
            sound = await track
            frames = [await sound.recv() for _ in range(100)]
    finally:
        await peer.close()
    return np.concatenate([frame.to_ndarray().ravel() for frame in frames])


@pytest.mark.parametrize("block", blocks("bash"))
def test_shell(block: str, folder: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", block.replace(MODEL, str(CHECKPOINT))], folder)
    made = {path.name for path in folder.iterdir()} - {"caller.wav", "owen.wav"}
    assert made in ({"agent.wav", "agent.json"}, {"owen.pt"}, set())
