"""What a bot can be told on the command line and in the environment."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from pipecat_personaplex.cli.options import named_voice
from pipecat_personaplex.config import AUTO_MODEL
from pipecat_personaplex.errors import ConfigError

# What has to be installed and set before a transport can serve anybody.
_TWILIO_KEYS = "TWILIO_ACCOUNT_SID with TWILIO_AUTH_TOKEN, or with TWILIO_API_KEY and _API_SECRET"
_TRANSPORTS = ("webrtc", "daily", "twilio")


def _frames(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of frames")
    return int(text)


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return value


# What the environment may say in an option's place: how it is read, and what holds where nobody
# says anything.
_Options = dict[str, tuple[Callable[[str], object], object]]
_OF_EVERY_CALL: _Options = {
    "voice": (str, None),
    "greeting": (str, None),
    "max_sessions": (_positive, None),
}
_OF_A_MODEL: _Options = {
    "model": (str, AUTO_MODEL),
    "device": (str, "auto"),
    "quantization": (str, None),
    "kv_dtype": (str, "auto"),
    "context": (_frames, 0),
}
_EPILOG = """\
environment (an option wins over it; a .env file is read too):
  PERSONAPLEX_MODEL, PERSONAPLEX_DEVICE, PERSONAPLEX_ENGINE, PERSONAPLEX_VOICE,
  PERSONAPLEX_PROMPT, PERSONAPLEX_GREETING, PERSONAPLEX_QUANTIZATION, PERSONAPLEX_KV_DTYPE,
  PERSONAPLEX_CONTEXT, PERSONAPLEX_MAX_SESSIONS     as the options above
  PERSONAPLEX_API_KEY                               for --engine, where its servers want one
  HF_TOKEN                                          to download the gated 7B weights
  DAILY_API_KEY                                     for -t daily
  TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN             for -t twilio, to hang up; instead of the
  TWILIO_API_KEY, TWILIO_API_SECRET                 token, an API key and its secret
"""


class BotParser(argparse.ArgumentParser):
    """The bot's own options; Pipecat's runner adds its own to them and parses.

    Args:
        description: Who the bot is.
        prompt: The role unless another is given.
        prepare: Called with all arguments before the server starts: a mistake in any option shows
            before gigabytes are loaded, and the model is there before the first caller.
    """

    def __init__(
        self, description: str, prompt: str, prepare: Callable[[argparse.Namespace], object]
    ):
        super().__init__(
            description=description,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._prompt = prompt
        self._prepare = prepare
        self.add_argument(
            "--model",
            metavar="auto|nano|FOLDER|REPO",
            help="a folder with a release's files, or a Hugging Face repo id, or nano, the small "
            "model that comes along (default: auto, nvidia/personaplex-7b-v1 where there is a GPU "
            "and access, else nano)",
        )
        self.add_argument(
            "--device",
            metavar="auto|cpu|cuda|cuda:N",
            help="where the model runs (default: auto)",
        )
        self.add_argument(
            "--quantization",
            metavar="int8|fp8|int4",
            help="keep the model's weights at 8 or 4 bits: less memory, faster (default: as they "
            "are in the checkpoint)",
        )
        self.add_argument(
            "--kv-dtype",
            metavar="auto|bfloat16|float32|fp8",
            help="in which the model keeps what was said: fp8 makes room for nearly twice the "
            "callers (default: auto, the model's own)",
        )
        self.add_argument(
            "--context",
            type=_frames,
            metavar="FRAMES",
            help="how far back the model remembers, in frames of 80 ms: fewer make room for more "
            "callers (default: 0, as far as it was made for)",
        )
        self.add_argument(
            "--engine",
            metavar="URL[,URL]",
            action="append",
            type=_urls,
            help="servers that run the model in place of this process: the address of `personaplex "
            "serve`, as ws://127.0.0.1:8998, or with /api/chat that of NVIDIA's; several share "
            "the callers",
        )
        self.add_argument(
            "--voice",
            help="a voice of the model; `personaplex voices list` names them",
        )
        self.add_argument(
            "--add-voice",
            metavar="NAME=FILE",
            action="append",
            help="a voice besides the model's: a recording of one speaker, or a .pt or "
            ".safetensors voice; may be given again",
        )
        self.add_argument(
            "--prompt",
            metavar="TEXT",
            help="the agent's role, in plain words",
        )
        self.add_argument(
            "--greeting",
            metavar="TEXT",
            help="a sentence the agent opens every call with",
        )
        self.add_argument(
            "--max-sessions",
            type=_positive,
            metavar="N",
            help="callers at once; the next one is turned away politely (default: as many as the "
            "engine has room for, 8 at most)",
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse, check, and prepare what the bot needs."""
        for action in self._actions:
            if action.dest == "transport":  # the runner's own option, which offers more
                action.choices = _TRANSPORTS
                action.help = "where callers come from (default: webrtc)"
        parsed: argparse.Namespace = super().parse_args(args, namespace)
        if parsed.direct:
            parsed.transport = parsed.transport or "daily"
        # One transport only: what another needs has not been checked.
        parsed.transport = parsed.transport or "webrtc"
        check_transport(parsed.transport, parsed.proxy, os.environ)
        _fill(parsed, _OF_EVERY_CALL | {"prompt": (str, self._prompt)}, os.environ)
        choose_engine(parsed, os.environ)
        parsed.add_voice = [named_voice(text) for text in parsed.add_voice or ()]
        self._prepare(parsed)
        return parsed

    def error(self, message: str) -> NoReturn:
        """End with one line instead of a page of usage."""
        print(f"error: {message}; see --help", file=sys.stderr)
        self.exit(2)


def check_transport(transport: str, proxy: str | None, environment: Mapping[str, str]) -> None:
    """Refuse a transport that could not serve a call.

    Raises:
        ConfigError: Something is not installed or not set.
    """
    if transport == "daily":
        if importlib.util.find_spec("daily") is None:
            raise ConfigError("-t daily needs Daily's client; pip install 'pipecat-ai[daily]'")
        if not environment.get("DAILY_API_KEY"):
            raise ConfigError("-t daily needs DAILY_API_KEY; it is on dashboard.daily.co")
    if transport == "twilio":
        has_key = environment.get("TWILIO_API_KEY") and environment.get("TWILIO_API_SECRET")
        secrets = bool(environment.get("TWILIO_AUTH_TOKEN")) + bool(has_key)
        if not environment.get("TWILIO_ACCOUNT_SID") or not secrets:
            raise ConfigError(f"-t twilio needs {_TWILIO_KEYS}; they are on console.twilio.com")
        if secrets == 2:
            raise ConfigError("-t twilio takes TWILIO_AUTH_TOKEN or an API key, not both")
        if not proxy:
            raise ConfigError("-t twilio needs -x HOST, the public name that Twilio can reach")


def choose_engine(parsed: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Settle whether the model runs here or elsewhere; an option wins over the environment.

    Raises:
        ConfigError: Both are asked for, or an engine without saying where.
    """
    urls = [url for some in parsed.engine or () for url in some]
    if parsed.engine and not urls:  # as from a variable that is not set
        raise ConfigError("--engine wants an address, as ws://127.0.0.1:8998")
    names = [*_OF_A_MODEL, "add_voice"]
    given = [name for name in names if getattr(parsed, name) is not None]
    if not urls and not given:
        urls = _urls(environment.get("PERSONAPLEX_ENGINE", ""))
    if not urls:
        _fill(parsed, _OF_A_MODEL, environment)
    elif given:
        raise ConfigError(
            f"--engine leaves --{given[0].replace('_', '-')} to the servers; give it to "
            "`personaplex serve`"
        )
    parsed.engine = urls


def _urls(text: str) -> list[str]:
    return [url.strip() for url in text.split(",") if url.strip()]


def _fill(parsed: argparse.Namespace, options: _Options, environment: Mapping[str, str]) -> None:
    """Take from the environment what no option says; a variable that is empty says nothing."""
    for name, (read, default) in options.items():
        if getattr(parsed, name) is not None:
            continue
        variable = f"PERSONAPLEX_{name.upper()}"
        try:
            value = read(text) if (text := environment.get(variable)) else default
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{variable}: {error}") from None
        setattr(parsed, name, value)
