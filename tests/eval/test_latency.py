"""Latency from outside: exact on a line whose delay is known, real on every transport."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.audio_files import write_wav
from pipecat_personaplex.cli import main
from pipecat_personaplex.cli.eval_latency import _question
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError, EngineUnreachable, InvalidAudio, UserError
from pipecat_personaplex.eval.latency import probe as probe_module
from pipecat_personaplex.eval.latency.measure import Target, measure_floor
from pipecat_personaplex.eval.latency.probe import Recorder, probe, tone
from pipecat_personaplex.eval.latency.webrtc_line import over_http
from pipecat_personaplex.eval.suites import caller_voices
from tests.helpers.commands import one_line
from tests.helpers.servers import RunningServer, ServedFakeEngine

TARGETS = {
    "webrtc": "http://localhost:1",
    "twilio": "ws://localhost:1/ws",
    "server": "ws://localhost:1",
}


class DelayLine:
    """A line that repeats everything after a fixed time."""

    rate = 8_000

    def __init__(self, delay: float, *, deaf: bool = False):
        self.recorder = Recorder(self.rate)
        self._delay = delay
        self._deaf = deaf

    async def send(self, chunk: Pcm) -> None:
        sound = chunk * (0 if self._deaf else 1)
        self.recorder.add(time.monotonic() + self._delay, sound)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def test_the_recorder_plays_without_gaps_and_skips_waiting_silence() -> None:
    loud, quiet = np.full(160, 0.5, np.float32), np.zeros(160, np.float32)
    recorder = Recorder(8_000)
    recorder.add(10.0, quiet)
    recorder.add(10.5, loud)
    assert recorder.first_sound(0.0) == pytest.approx(10.5)
    recorder.add(10.5, loud)  # arrives together with the one before: is heard after it
    assert recorder.quiet_for(10.6) == pytest.approx(0.065)
    recorder = Recorder(8_000)
    for _ in range(10):
        recorder.add(20.0, quiet)  # 200 ms at once
    recorder.add(20.0, loud)
    sound = recorder.first_sound(0.0)
    assert sound is not None and 20.1 < sound <= 20.121
    assert recorder.first_sound(30.0) is None


async def test_a_known_delay() -> None:
    async with DelayLine(0.3) as line:
        found = await probe(line, tone(), 2, from_end=False)
    # A chunk of 20 ms is complete 20 ms after its start.
    assert found.unanswered == 0
    assert all(0.3 <= seconds <= 0.45 for seconds in found.seconds)
    assert found.median <= found.percentile(95) <= 0.45


async def test_speech_counts_from_its_end() -> None:
    sound = np.full(SAMPLE_RATE // 2, 0.3, np.float32)
    async with DelayLine(0.3) as line:
        found = await probe(line, sound, 1, from_end=True)
    assert -0.25 <= found.median <= -0.05  # the echo starts before the caller has finished


def test_a_question_from_a_file_ends_with_its_last_word(tmp_path: Path) -> None:
    name, spoken = _question(None)
    assert name == "a question from the recordings bundled with nano"
    silence = np.zeros(2 * SAMPLE_RATE, np.float32)
    write_wav(tmp_path / "question.wav", np.concatenate([spoken, silence]))
    path = tmp_path / "question.wav"
    name, cut = _question(path)
    assert name == str(path) and abs(len(cut) - len(spoken)) < 0.1 * SAMPLE_RATE
    write_wav(tmp_path / "silence.wav", silence)
    with pytest.raises(InvalidAudio, match="contains no speech"):
        _question(tmp_path / "silence.wav")


def test_a_question_without_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As an installed package is: espeak-ng asks, or the error says what to do."""
    monkeypatch.setattr(caller_voices, "_SAMPLES", tmp_path)
    if caller_voices.has_espeak():
        name, pcm = _question(None)
        assert name == "a question from espeak-ng" and len(pcm) > SAMPLE_RATE
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"apt-get install espeak-ng; or .* with --input FILE"):
        _question(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bot", "--tone", "--input", "no.wav"], "--tone sends tones, and --input a recording"),
        (["bot", "--prompt", "Hi."], "--prompt is for a server, and http://localhost:7860 is"),
        (["bot", "--voice", "NATF2"], "--voice is for a server"),
        (["ws://localhost:1/ws", "--prompt", "Hi."], "is called over twilio; leave out --prompt"),
        (["ws://localhost:1/ws", "--voice", "NATF2"], "is called over twilio; leave out --voice"),
    ],
)
def test_options_that_contradict(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "latency", *arguments, "--floor", "none"]) == 2
    assert message in one_line(capsys.readouterr().err)


async def test_no_answer() -> None:
    async with DelayLine(0.0, deaf=True) as line:
        found = await probe(line, tone(), 2, from_end=False, patience=0.2)
    assert (found.seconds, found.unanswered) == ((), 2)
    assert np.isnan(found.median)


async def test_a_line_that_never_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_MAX_WAIT_SECONDS", 0.3)

    class Humming(DelayLine):
        async def send(self, chunk: Pcm) -> None:
            self.recorder.add(time.monotonic(), np.full(len(chunk), 0.3, np.float32))

    async with Humming(0.0) as line:
        found = await probe(line, tone(), 2, from_end=True)
    assert (found.seconds, found.unanswered) == ((), 2)


async def test_no_audio_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead(DelayLine):
        async def send(self, chunk: Pcm) -> None:
            pass

    monkeypatch.setattr(probe_module, "_CONNECT_SECONDS", 0.2)
    async with Dead(0.0) as line:
        with pytest.raises(EngineUnreachable, match="no audio has arrived"):
            await probe(line, tone(), 1, from_end=False)


@pytest.mark.realtime
@pytest.mark.parametrize("transport", TARGETS)
async def test_the_floor_of_each_transport(transport: str) -> None:
    target = Target.parse(TARGETS[transport])
    assert target.transport == transport
    found = await measure_floor(target, None, 2)
    least = {"webrtc": 0.02, "twilio": 0.02, "server": 0.08}[transport]
    assert found.unanswered == 0
    assert least <= found.median <= 1.5
    print(f"{transport}: {found.median * 1e3:.0f} ms")


@pytest.fixture
def server() -> Iterator[str]:
    with RunningServer(ServedFakeEngine()) as running:
        yield running.ws_url


@pytest.mark.realtime
def test_a_server_from_the_command_line(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The fake engine repeats the caller: its latency is that of the floor."""
    assert main(["eval", "latency", server, "--tone", "--count", "2"]) == 0
    *_, line, report = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"without the floor: median -?\d+ ms", line)
    content = json.loads(report)
    assert content["transport"] == "server" and len(content["seconds"]) == 2
    assert abs(content["median_s"] - content["floor_median_s"]) < 1.0


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://127.0.0.1:9", "does not answer"),
        ("ws://127.0.0.1:9/ws", "does not answer"),
        ("ws://127.0.0.1:9", "no server of the engine is reachable"),
    ],
)
def test_nothing_answers(target: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "latency", target, "--floor", "none", "--count", "1"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


async def test_a_bot_that_needs_a_key() -> None:
    asked: list[str | None] = []

    class Bot(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.headers["Authorization"])
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"sdp": "", "type": "answer"}')

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Bot) as bot:
        thread = threading.Thread(target=bot.serve_forever)
        thread.start()
        try:
            for key in ("secret", None):
                offer = over_http(f"http://127.0.0.1:{bot.server_port}", key)
                assert (await offer({"sdp": ""}))["type"] == "answer"
        finally:
            bot.shutdown()
            thread.join()
    assert asked == ["Bearer secret", None]


async def test_another_echo_as_floor() -> None:
    target = Target.parse("ws://localhost:1/ws")
    with pytest.raises(EngineUnreachable, match="does not answer"):
        await measure_floor(target, Target.parse("ws://127.0.0.1:9/ws"), 1)


_WRONG_TARGETS = [
    *("localhost:7860", "ftp://x", "http://", "bots"),
    *("http://[::1", "ws://localhost:99999/ws", "http://localhost:x", "http://localhost:0"),
]


@pytest.mark.parametrize("text", _WRONG_TARGETS)
def test_wrong_targets(text: str) -> None:
    with pytest.raises(ConfigError, match="must be bot, http"):
        Target.parse(text)


def test_the_default_bot() -> None:
    assert Target.parse("bot") == Target("http://localhost:7860", "webrtc")
    assert Target.parse("ws://h:1/api/chat").transport == "server"
    assert Target.parse("wss://h/bot", "twilio").transport == "twilio"
