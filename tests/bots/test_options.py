"""The options of a bot, their environment variables, and the credentials of each transport."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import pytest

from bots.options import BotParser, check_transport
from pipecat_personaplex.errors import ConfigError, VoiceError
from tests.helpers.logs import logging_restored

ACCOUNT = "AC" + "0" * 32
TWILIO = {"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": "secret"}
# Every PERSONAPLEX_ variable that sets an option.
VARIABLES = (
    *("MODEL", "DEVICE", "ENGINE", "VOICE", "PROMPT", "GREETING", "MAX_SESSIONS"),
    *("QUANTIZATION", "KV_DTYPE", "CONTEXT", "LOG_LEVEL", "LOG_JSON"),
)


def parse(*arguments: str) -> argparse.Namespace:
    """Parse as Pipecat's runner does, with those of its options that bots change."""
    prepared: list[argparse.Namespace] = []
    parser = BotParser("A bot.", "You are a bot.", prepared.append)
    parser.add_argument("-t", "--transport")
    parser.add_argument("-x", "--proxy")
    parser.add_argument("-d", "--direct", action="store_true")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    parsed = parser.parse_args(list(arguments))
    assert prepared == [parsed]
    return parsed


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)


class TestOptions:
    def test_defaults(self) -> None:
        args = parse()
        assert (args.model, args.voice, args.greeting) == ("auto", None, None)
        assert (args.prompt, args.max_sessions, args.device) == ("You are a bot.", None, "auto")
        assert args.transport == "webrtc" and args.engine == []
        assert (args.quantization, args.kv_dtype, args.context) == ("auto", "auto", 0)
        assert args.add_voice == []
        assert (args.log_level, args.log_json) == ("INFO", False)

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
    def test_engine_and_model_options_decide_where_the_model_runs(
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
            ("--adapter", "a"),
            ("--device", "cpu"),
            ("--kv-dtype", "fp8"),
            ("--context", "500"),
            ("--context", "0"),
            ("--add-voice", "owen=owen.wav"),
        ],
    )
    def test_engine_excludes_options_of_a_local_model(self, option: tuple[str, str]) -> None:
        with pytest.raises(ConfigError, match=f"{option[0]} .*personaplex serve"):
            parse("--engine", "ws://a", *option)

    def test_quantization_kv_dtype_and_context(self, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert parse("--context", "0").context == 0, "an option wins over the environment"

    def test_an_empty_variable_counts_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in VARIABLES:
            monkeypatch.setenv(f"PERSONAPLEX_{name}", "")
        self.test_defaults()

    def test_add_voice(self, tmp_path: Path) -> None:
        (tmp_path / "owen.wav").write_bytes(b"")
        given = f"owen={tmp_path}/owen.wav"
        assert parse("--add-voice", given).add_voice == [("owen", tmp_path / "owen.wav")]
        with pytest.raises(ConfigError, match=r"NAME=FILE.*'owen.wav'"):
            parse("--add-voice", "owen.wav")
        with pytest.raises(VoiceError, match=r"there is no file /no\.wav"):
            parse("--add-voice", "owen=/no.wav")

    def test_help_lists_only_the_transports_that_bots_serve(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
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

    @pytest.mark.parametrize("count", ["0", "-1", "many", "1.5"])
    def test_an_invalid_number_gives_a_one_line_error(
        self, count: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            parse(f"--max-sessions={count}")
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: argument --max-sessions") and line.count("\n") == 1

    def test_abbreviated_options_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parse("--mod", "x")
        assert "unrecognized arguments: --mod x" in capsys.readouterr().err

    def test_log_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSONAPLEX_LOG_LEVEL", "warning")
        assert parse().log_level == "warning", "configure_logging accepts small letters"
        assert parse("--log-level", "error", "--log-json").log_level == "ERROR"
        assert parse("-v").log_level == "DEBUG"
        assert parse("--log-json").log_json
        for text, expected in (("1", True), ("0", False), ("", False)):
            monkeypatch.setenv("PERSONAPLEX_LOG_JSON", text)
            assert parse().log_json is expected

    def test_a_switch_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PERSONAPLEX_LOG_JSON", "maybe")
        with pytest.raises(ConfigError, match="PERSONAPLEX_LOG_JSON: 'maybe' is neither 1 nor 0"):
            parse()


class TestCredentials:
    def test_webrtc_needs_no_credentials(self) -> None:
        check_transport("webrtc", None, {})

    @pytest.mark.parametrize(
        ("transport", "proxy", "environment", "message"),
        [
            ("twilio", "bot.example", {}, "TWILIO_ACCOUNT_SID"),
            ("twilio", "bot.example", TWILIO | {"TWILIO_ACCOUNT_SID": "AC0"}, "32 hexadecimal"),
            ("twilio", "bot.example", {"TWILIO_ACCOUNT_SID": ACCOUNT}, "TWILIO_AUTH_TOKEN"),
            ("twilio", "bot.example", TWILIO | {"TWILIO_ACCOUNT_SID": ""}, "TWILIO_ACCOUNT_SID"),
            (
                "twilio",
                "bot.example",
                TWILIO | {"TWILIO_API_KEY": "SK0"},
                "need each other",
            ),
            (
                "twilio",
                "bot.example",
                TWILIO | {"TWILIO_REGION": "ie1"},
                "TWILIO_REGION and TWILIO_EDGE need each other",
            ),
            (
                "twilio",
                "bot.example",
                {
                    "TWILIO_ACCOUNT_SID": ACCOUNT,
                    "TWILIO_API_KEY": "SK0",
                    "TWILIO_API_SECRET": "s",
                },
                "with which Twilio signs",
            ),
            ("twilio", None, TWILIO, "-x HOST"),
        ],
    )
    def test_the_error_names_the_missing_variable(
        self, transport: str, proxy: str | None, environment: dict[str, str], message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message):
            check_transport(transport, proxy, environment)

    def test_twilio_needs_its_token_and_accepts_an_api_key_to_hang_up(self) -> None:
        check_transport("twilio", "bot.example", TWILIO)
        key = {"TWILIO_API_KEY": "SK0", "TWILIO_API_SECRET": "s"}
        check_transport("twilio", "bot.example", TWILIO | key)
        region = {"TWILIO_REGION": "ie1", "TWILIO_EDGE": "dublin"}
        check_transport("twilio", "bot.example", TWILIO | region)
        unsigned = {"TWILIO_ACCOUNT_SID": ACCOUNT} | key
        check_transport("twilio", "bot.example", unsigned, allow_unsigned=True)

    def test_daily_needs_its_client_and_a_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pipecat-ai\[daily\]"):
            check_transport("daily", None, {"DAILY_API_KEY": "k"})
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        with pytest.raises(ConfigError, match="DAILY_API_KEY"):
            check_transport("daily", None, {})
        check_transport("daily", None, {"DAILY_API_KEY": "k"})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-t", "twilio"], "TWILIO_ACCOUNT_SID"),
            (["--model", "/nowhere"], "'/nowhere' is neither"),
            (["--voice", "NATX9"], "voice 'NATX9' is unknown"),
            (["--engine", "nowhere"], "an engine's URL is like"),
            (["--engine", ""], "--engine needs an address"),
            (["--engine", " , "], "--engine needs an address"),
        ],
    )
    def test_the_bot_exits_with_a_one_line_error(
        self,
        arguments: list[str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """As ``python -m bots.assistant``, in this process; test_logs.py has one of its own."""
        for name in TWILIO:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("sys.argv", ["assistant", *arguments])
        monkeypatch.delitem(sys.modules, "bots.assistant", raising=False)
        with logging_restored(), pytest.raises(SystemExit) as ended:
            runpy.run_module("bots.assistant", run_name="__main__", alter_sys=True)
        assert ended.value.code == 2
        stderr = capfd.readouterr().err
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], stderr
        assert "Traceback" not in stderr and "Uvicorn" not in stderr
