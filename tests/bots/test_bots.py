"""Options, defaults, credentials, and callers who are turned away."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AudioStreamTrack
from pipecat.runner.types import (
    DailyRunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)

from bots.assistant import TEACHER, converse
from bots.drive_thru import RESTAURANT
from bots.host import BotHost
from bots.options import BotParser, check_transport
from bots.transports import sample_rate, transport_of, transport_params
from pipecat_personaplex.errors import ConfigError, VoiceError
from tests import golden_data
from tests.helpers.bots import BotProcess, run_bot
from tests.helpers.engines import FakeEngine

TWILIO = {"TWILIO_ACCOUNT_SID": "AC0", "TWILIO_AUTH_TOKEN": "secret"}
LOOPBACK = "tests.bots.loopback_assistant"
WAIT = 15.0
# All that the options may come from as well.
VARIABLES = (
    *("MODEL", "DEVICE", "ENGINE", "VOICE", "PROMPT", "GREETING", "MAX_SESSIONS"),
    *("QUANTIZATION", "KV_DTYPE", "CONTEXT"),
)


def parse(*arguments: str) -> argparse.Namespace:
    """As the runner does it, with those of its options that matter here."""
    prepared: list[argparse.Namespace] = []
    parser = BotParser("A bot.", "You are a bot.", prepared.append)
    parser.add_argument("-t", "--transport")
    parser.add_argument("-x", "--proxy")
    parser.add_argument("-d", "--direct", action="store_true")
    parsed = parser.parse_args(list(arguments))
    assert prepared == [parsed]
    return parsed


@pytest.fixture(autouse=True)
def no_foreign_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)


class TestOptions:
    def test_defaults(self) -> None:
        args = parse()
        assert (args.model, args.voice, args.greeting) == ("auto", None, None)
        assert (args.prompt, args.max_sessions, args.device) == ("You are a bot.", None, "auto")
        assert args.transport == "webrtc" and args.engine == []
        assert (args.quantization, args.kv_dtype, args.context) == (None, "auto", 0)
        assert args.add_voice == []

    @pytest.mark.parametrize(
        ("arguments", "variables", "engine", "model"),
        [
            (["--engine", "ws://a, ws://b", "--engine", "ws://c"], {}, "abc", None),
            ([], {"ENGINE": "ws://a,ws://b"}, "ab", None),
            (
                ["--engine", "ws://a"],
                {"ENGINE": "ws://b", "MODEL": "m", "DEVICE": "cpu"},
                "a",
                None,
            ),
            ([], {"ENGINE": "ws://a", "MODEL": "m"}, "a", None),
            (["--model", "n"], {"ENGINE": "ws://a", "MODEL": "m"}, "", "n"),
            (["--device", "cpu"], {"ENGINE": "ws://a", "MODEL": "m"}, "", "m"),
            (["--kv-dtype", "fp8"], {"ENGINE": "ws://a", "MODEL": "m"}, "", "m"),
            (["--engine", "ws://a"], {"KV_DTYPE": "fp8", "CONTEXT": "500"}, "a", None),
        ],
    )
    def test_the_model_runs_here_or_elsewhere(
        self,
        arguments: list[str],
        variables: dict[str, str],
        engine: str,
        model: str | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"PERSONAPLEX_{name}", value)
        args = parse(*arguments)
        assert args.engine == [f"ws://{name}" for name in engine]
        assert args.model == model

    @pytest.mark.parametrize(
        "option",
        [
            ("--model", "m"),
            ("--device", "cpu"),
            ("--kv-dtype", "fp8"),
            ("--context", "500"),
            ("--context", "0"),
            ("--add-voice", "owen=owen.wav"),
        ],
    )
    def test_the_model_does_not_run_both_here_and_elsewhere(self, option: tuple[str, str]) -> None:
        with pytest.raises(ConfigError, match=f"{option[0]} .*personaplex serve"):
            parse("--engine", "ws://a", *option)

    def test_how_much_a_model_remembers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSONAPLEX_KV_DTYPE", "fp8")
        monkeypatch.setenv("PERSONAPLEX_QUANTIZATION", "int4")
        assert parse().quantization == "int4"
        assert parse("--quantization", "int8").quantization == "int8"
        monkeypatch.setenv("PERSONAPLEX_CONTEXT", "500")
        assert (parse().kv_dtype, parse().context) == ("fp8", 500)
        args = parse("--kv-dtype", "bfloat16", "--context", "700")
        assert (args.kv_dtype, args.context) == ("bfloat16", 700)
        monkeypatch.setenv("PERSONAPLEX_CONTEXT", "long")
        with pytest.raises(ConfigError, match=r"^PERSONAPLEX_CONTEXT: 'long' is not a number"):
            parse()
        assert parse("--context", "0").context == 0, "an option wins"

    def test_an_empty_variable_says_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in VARIABLES:
            monkeypatch.setenv(f"PERSONAPLEX_{name}", "")
        self.test_defaults()

    def test_a_voice_of_ones_own(self, tmp_path: Path) -> None:
        (tmp_path / "owen.wav").write_bytes(b"")
        given = f"owen={tmp_path}/owen.wav"
        assert parse("--add-voice", given).add_voice == [("owen", tmp_path / "owen.wav")]
        with pytest.raises(ConfigError, match=r"NAME=FILE.*'owen.wav'"):
            parse("--add-voice", "owen.wav")
        with pytest.raises(VoiceError, match=r"there is no file /no\.wav"):
            parse("--add-voice", "owen=/no.wav")

    def test_only_what_is_served_is_offered(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parse("--help")
        shown = " ".join(capsys.readouterr().out.split())
        assert "{webrtc,daily,twilio} where callers come from (default: webrtc)" in shown
        with pytest.raises(SystemExit):
            parse("-t", "livekit")
        line = capsys.readouterr().err
        assert "livekit" in line and "webrtc" in line and line.count("\n") == 1

    def test_an_option_wins_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSONAPLEX_VOICE", "NATM1")
        monkeypatch.setenv("PERSONAPLEX_MAX_SESSIONS", "3")
        assert (parse().voice, parse().max_sessions) == ("NATM1", 3)
        assert parse("--voice", "NATF2", "--max-sessions", "5").voice == "NATF2"
        monkeypatch.setenv("PERSONAPLEX_MAX_SESSIONS", "x")
        with pytest.raises(ConfigError, match=r"^PERSONAPLEX_MAX_SESSIONS: 'x' is not a number"):
            parse()
        assert parse("--max-sessions", "5").max_sessions == 5

    def test_callers_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def lines(slots: int, *arguments: str) -> int:
            host = BotHost("A bot.", converse, voice="NATF2", prompt="You are a bot.")
            host._engine, host._args = FakeEngine(slots), parse(*arguments)
            for taken in range(99):
                host._calls = taken
                if host.full:
                    return taken
            raise AssertionError("there is no end of callers")

        assert [lines(slots) for slots in (2, 8, 20)] == [2, 8, 8]
        assert lines(0) == 8, "NVIDIA's server does not tell"
        assert lines(20, "--max-sessions", "12") == 12
        monkeypatch.setenv("PERSONAPLEX_MAX_SESSIONS", "")
        assert lines(2) == 2

    @pytest.mark.parametrize("count", ["0", "-1", "many", "1.5"])
    def test_a_wrong_number_is_one_line(
        self, count: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(f"--max-sessions={count}")
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: argument --max-sessions") and line.count("\n") == 1

    def test_names_are_not_abbreviated(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parse("--mod", "x")
        assert "unrecognized arguments: --mod x" in capsys.readouterr().err


class TestCredentials:
    def test_webrtc_needs_none(self) -> None:
        check_transport("webrtc", None, {})

    @pytest.mark.parametrize(
        ("transport", "proxy", "environment", "message"),
        [
            ("twilio", "bot.example", {}, "TWILIO_ACCOUNT_SID"),
            ("twilio", "bot.example", {"TWILIO_ACCOUNT_SID": "AC0"}, "TWILIO_AUTH_TOKEN"),
            ("twilio", "bot.example", TWILIO | {"TWILIO_ACCOUNT_SID": ""}, "TWILIO_ACCOUNT_SID"),
            (
                "twilio",
                "bot.example",
                TWILIO | {"TWILIO_API_KEY": "SK0", "TWILIO_API_SECRET": "s"},
                "not both",
            ),
            ("twilio", None, TWILIO, "-x HOST"),
        ],
    )
    def test_what_is_missing_is_named(
        self, transport: str, proxy: str | None, environment: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            check_transport(transport, proxy, environment)

    def test_twilio_takes_a_token_or_a_key(self) -> None:
        check_transport("twilio", "bot.example", TWILIO)
        key = {"TWILIO_ACCOUNT_SID": "AC0", "TWILIO_API_KEY": "SK0", "TWILIO_API_SECRET": "s"}
        check_transport("twilio", "bot.example", key)

    def test_daily(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pipecat-ai\[daily\]"):
            check_transport("daily", None, {"DAILY_API_KEY": "k"})
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        with pytest.raises(ConfigError, match="DAILY_API_KEY"):
            check_transport("daily", None, {})
        check_transport("daily", None, {"DAILY_API_KEY": "k"})

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-t", "twilio"], "TWILIO_ACCOUNT_SID"),
            (["--model", "/nowhere"], "'/nowhere' is neither"),
            (["--voice", "NATX9"], "voice 'NATX9' is unknown"),
            (["--engine", "nowhere"], "an engine's URL is like"),
            (["--engine", ""], "--engine wants an address"),
            (["--engine", " , "], "--engine wants an address"),
        ],
    )
    def test_the_process_ends_with_one_line(self, arguments: list[str], message: str) -> None:
        ended = run_bot("bots.assistant", *arguments)
        assert ended.returncode == 2
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], ended.stderr
        assert "Traceback" not in ended.stderr and "Uvicorn" not in ended.stderr


def test_the_roles_are_nvidias() -> None:
    assert RESTAURANT == golden_data.RESTAURANT.text_prompt
    assert TEACHER.startswith("You are a wise and friendly teacher.")


def test_each_transport_has_its_rate_and_chunks_that_divide_a_frame() -> None:
    socket: Any = object()
    arguments = {
        "webrtc": SmallWebRTCRunnerArguments(webrtc_connection=None),
        "daily": DailyRunnerArguments(room_url="https://example.daily.co/room"),
        "twilio": WebSocketRunnerArguments(websocket=socket),
    }
    assert {transport_of(a): sample_rate(transport_of(a)) for a in arguments.values()} == {
        "webrtc": 24_000,
        "daily": 24_000,
        "twilio": 8_000,
    }
    browser = WebSocketRunnerArguments(websocket=socket, transport_type="websocket")
    assert transport_of(browser) == ""
    for name in ("webrtc", "twilio"):
        params = transport_params()[name]()
        assert params.audio_in_enabled and params.audio_out_enabled
        assert 8 % params.audio_out_10ms_chunks == 0


@asynccontextmanager
async def offer() -> AsyncIterator[tuple[RTCPeerConnection, dict[str, str]]]:
    """A caller with a microphone, and what it posts."""
    peer = RTCPeerConnection()
    peer.createDataChannel("rtvi-ai")
    peer.addTrack(AudioStreamTrack())
    await peer.setLocalDescription(await peer.createOffer())
    try:
        yield peer, {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}
    finally:
        await peer.close()


async def heard(peer: RTCPeerConnection, answer: dict[str, str]) -> None:
    """Wait until the agent's audio arrives."""
    arrived = asyncio.Event()

    @peer.on("track")
    async def on_track(track: Any) -> None:
        if track.kind == "audio":
            await track.recv()
            arrived.set()

    await peer.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))
    await asyncio.wait_for(arrived.wait(), WAIT)


async def test_a_caller_too_many_is_told_to_come_back() -> None:
    with BotProcess(LOOPBACK, "--max-sessions", "1") as bot:
        async with (
            aiohttp.ClientSession(bot.url) as http,
            offer() as (first, first_offer),
            offer() as (_, second_offer),
        ):
            async with http.post("/api/offer", json=first_offer) as response:
                assert response.status == 200
                answer = await response.json()
            await heard(first, answer)

            for path, body in (("/start", {}), ("/api/offer", second_offer)):
                async with http.post(path, json=body) as response:
                    assert response.status == 503
                    assert int(response.headers["Retry-After"]) > 0
                    assert "every line is taken" in (await response.json())["detail"]

            # Whoever is talking may renew the connection, and the page stays readable.
            await first.setLocalDescription(await first.createOffer())
            renewed = {"sdp": first.localDescription.sdp, "type": first.localDescription.type}
            renewed["pc_id"] = answer["pc_id"]
            async with http.post("/api/offer", json=renewed) as response:
                assert response.status == 200
            async with http.get("/client/") as response:
                assert response.status == 200

            await first.close()
            async with asyncio.timeout(WAIT):
                while True:
                    async with http.post("/start", json={}) as response:
                        if response.status == 200:
                            break
                    await asyncio.sleep(0.1)


async def test_a_telephone_caller_too_many_gets_a_busy_tone() -> None:
    options = ("-t", "twilio", "-x", "bot.example", "--max-sessions", "1")
    with BotProcess(LOOPBACK, *options, **TWILIO) as bot:
        async with aiohttp.ClientSession(bot.url) as http:
            async with http.post("/") as response:
                assert "wss://bot.example/ws" in await response.text()
            async with http.ws_connect("/ws") as call:
                start = {"streamSid": "MZ0", "callSid": "CA0", "customParameters": {}}
                await call.send_json({"event": "connected", "protocol": "Call"})
                await call.send_json({"event": "start", "streamSid": "MZ0", "start": start})
                media = json.loads(await asyncio.wait_for(call.receive_str(), WAIT))
                assert media["event"] == "media"

                async with http.post("/") as response:
                    assert response.status == 200
                    assert '<Reject reason="busy"/>' in await response.text()
                async with http.ws_connect("/ws") as late:
                    message = await asyncio.wait_for(late.receive(), WAIT)
                    assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 1013


async def test_what_is_not_twilios_ends_that_call_alone() -> None:
    with BotProcess(LOOPBACK, "-t", "twilio", "-x", "bot.example", **TWILIO) as bot:
        async with aiohttp.ClientSession(bot.url) as http:
            async with http.ws_connect("/ws") as call:
                await call.send_json({"event": "hello"})
                await call.send_json({"event": "world"})
                message = await asyncio.wait_for(call.receive(), WAIT)
                assert message.type is aiohttp.WSMsgType.CLOSE
            async with http.get("/status") as response:
                assert response.status == 200
        assert bot.log.count("a call was not taken") == 1
        assert "Traceback" not in bot.log


async def test_being_told_to_stop_ends_running_calls() -> None:
    with BotProcess(LOOPBACK) as bot:
        async with aiohttp.ClientSession(bot.url) as http, offer() as (peer, body):
            async with http.post("/api/offer", json=body) as response:
                await heard(peer, await response.json())
            assert await asyncio.to_thread(bot.stop)
