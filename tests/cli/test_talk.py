"""``personaplex talk`` on the command line."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipecat_personaplex.cli import main
from pipecat_personaplex.cli import talk as command
from pipecat_personaplex.talk import serving
from pipecat_personaplex.talk.page_app import create_app
from tests.golden_data import CHECKPOINT
from tests.helpers.commands import one_line, process
from tests.talk.processes import TalkProcess


def run(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one-line error of a command that fails."""
    assert main(["talk", "--no-browser", *map(str, arguments)]) == 2
    return one_line(capsys.readouterr().err)


def test_a_port_in_use_is_found_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = run("--port", str(port), "--model", "nano", capsys=capsys)
    assert f"port {port}" in error and "in use" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--voice", "NATX9", "--model", "nano"], "voice 'NATX9' is unknown"),
        (["--add-voice", "owen"], "must be NAME=FILE"),
        (["--port", "99999"], "--port"),
        (["--ice-server", "stun.example.com"], "must be stun:HOST:PORT or turn:"),
        (["--ice-server", "turn:x.example,anna"], "must be stun:HOST:PORT or turn:"),
        (
            ["--ice-server", "turn:x.example:3478"],
            "a TURN server needs a user and a password: turn:HOST:PORT,USER,PASSWORD",
        ),
        (["--public-url", "talk.example.com"], "must be an address such as https://"),
        (["--public-url", "https://:7860"], "must be an address such as https://"),
        (["--public-url", "https://x.example:port"], "must be an address such as https://"),
        (["--public-url", "http://talk.example.com"], "must begin with https"),
        (["--log-level", "loud"], "the log level must be one of DEBUG, INFO"),
        (["--log-level", "info", "--port", "99999"], "--port"),
        (["--public-url", "https://x.example", "--share-on-lan"], "choose --public-url or"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in run("--port", "0", *arguments, capsys=capsys)


def test_a_missing_package_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'pipecat-personaplex[talk]'" in run(capsys=capsys)


def test_sharing_needs_a_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_ELSEWHERE", ("not an address", 9))
    assert "this machine is in no network" in run("--share-on-lan", capsys=capsys)


@pytest.mark.parametrize(
    ("arguments", "host", "origin"),
    [
        ("--public-url https://Talk.Example.com/", "talk.example.com", "https://talk.example.com"),
        (
            "--public-url https://talk.example.com:443/agent/",
            "localhost:7860",
            "https://talk.example.com",
        ),
        (
            "--public-url https://talk.example.com:8443",
            "localhost:7860",
            "https://talk.example.com:8443",
        ),
        ("--share-on-lan", "desktop-ab12:7860", "https://desktop-ab12:7860"),
    ],
)
def test_the_page_may_be_opened_by_names_as_browsers_send_them(
    arguments: str, host: str, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small letters, without the default port."""
    statuses: list[int] = []

    class Server:
        """Asks its application, in place of serving it."""

        def __init__(self, talk: Any, *_: object, hosts: Any, origins: Any, tls: object):
            self._app = create_app(talk, hosts, origins)

        def run(self, ready: object) -> bool:
            with TestClient(self._app, base_url=f"http://{host}") as page:
                for own in (origin, "https://evil.example"):
                    answer = page.get("/api/info", headers={"origin": own})
                    statuses.append(answer.status_code)
            return True

    monkeypatch.setattr(serving, "TalkServer", Server)
    monkeypatch.setattr(command.socket, "gethostname", lambda: "DESKTOP-AB12")
    monkeypatch.setattr(command, "_lan_address", lambda: "192.0.2.7")
    options = ["--no-browser", "--port", "0", "--model", "nano", *arguments.split()]
    assert main(["talk", *options]) == 0
    assert statuses == [200, 403]


def test_a_browser_opens_where_there_is_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not command._has_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert command._has_browser()


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    ended = process("talk", "--no-browser", "--port", "0", "--model", tmp_path)
    error = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2 and error.startswith("error: ") and "Traceback" not in error


def test_a_transcriber_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    options = ("--model", "nano", "--transcribe", tmp_path)
    ended = process("talk", "--no-browser", "--port", "0", *options)
    error = ended.stderr.splitlines()[-1]
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"--transcribe {tmp_path}: Whisper's model cannot be loaded" in error


def test_it_prints_one_address_serves_and_stops() -> None:
    # Files are read and written in the sandbox of this machine alone: no Hub, no network.
    options = ("--model", str(CHECKPOINT), "--max-sessions", "2", "--share-on-lan", "--prebuilt")
    with TalkProcess(*options) as bot:
        [address] = [word for word in bot.log.split() if word.startswith("https://")]
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        for path in ("/", "/client/"):
            with urllib.request.urlopen(address + path, context=trusting) as response:
                assert response.status == 200
        with urllib.request.urlopen(f"{address}/api/info", context=trusting) as response:
            info = json.load(response)
        assert (info["state"], info["slots"]) == ("ready", 2)
        bot.interrupt()
    assert bot.returncode == 0
    assert "leaked" not in bot.log and "Traceback" not in bot.log


def test_it_can_be_interrupted_while_the_model_loads() -> None:
    bot = TalkProcess("--model", "nano")
    started = subprocess.Popen(
        bot.command, env=bot.variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with started:
        try:
            assert started.stderr is not None
            assert any("loading nano" in line for line in started.stderr)
            started.send_signal(signal.SIGINT)
            started.communicate(timeout=60)
        finally:
            started.kill()
    assert started.returncode in (0, 130)
