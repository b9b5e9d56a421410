"""A bot whose engine runs on a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.helpers.bots import (
    BotProcess,
    environment,
    receive_audio,
    run_bot,
    webrtc_caller,
)
from tests.helpers.forking import ROOT
from tests.helpers.servers import RunningServer, ServedFakeEngine
from tests.remote.fakes import FakeServer


async def test_the_server_serves_the_call() -> None:
    engine = ServedFakeEngine()
    with (
        RunningServer(lambda: engine) as server,
        BotProcess("bots.assistant", PERSONAPLEX_ENGINE=server.ws_url) as bot,
    ):
        async with aiohttp.ClientSession(bot.url) as http, webrtc_caller() as (peer, body):
            async with http.post("/api/offer", json=body) as response:
                await receive_audio(peer, await response.json())
        assert engine.sessions[0].persona.voice == "NATF2"
        assert engine.sessions[0].persona.text_prompt.startswith("You are a wise")
        assert bot.stop()


def test_the_bot_does_not_import_torch() -> None:
    program = (
        "import sys, bots.assistant\n"
        "from bots.engines import connect_engine\n"
        "connect_engine(['ws://127.0.0.1:1'], None)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment(), check=True)


def test_a_wrong_key_gives_a_one_line_error() -> None:
    with FakeServer(key="sesame") as server:
        ended = run_bot("bots.assistant", "--engine", server.url, PERSONAPLEX_API_KEY="abracadabra")
        assert ended.returncode == 1
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "401" in errors[0], ended.stderr
        assert "Traceback" not in ended.stderr and "abracadabra" not in ended.stderr


@pytest.mark.parametrize("bot", ["bots.assistant", "bots.drive_thru"])
def test_a_backend_for_a_server_that_speaks_no_given_words(bot: str, tmp_path: Path) -> None:
    with FakeServer() as server:
        server.features = ["sampling"]
        options = ["--stt", "tests.bots.my_stt:create", "--backend", "openai"]
        ended = run_bot(
            *(bot, "--engine", server.url, *options),
            OPENAI_API_KEY="key of a test",
            PERSONAPLEX_NOTES="none",
            PERSONAPLEX_ORDERS=str(tmp_path / "orders.db"),
            PERSONAPLEX_RECORDS=str(tmp_path / "calls"),
        )
    assert ended.returncode == 2
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "--backend openai needs an engine that supports hold, prompt, say" in error
