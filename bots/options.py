"""The options of a bot: command line and environment."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from bots.protection_options import add_protection_options, restrict_runner_options
from bots.twilio import ACCOUNT_SID
from pipecat_personaplex.cli.options import named_voice
from pipecat_personaplex.config import AUTO_MODEL
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.logs import LOG_LEVELS

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


def _switch(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither 1 nor 0")


# Options that have a variable in the environment: how its text is parsed, and the default if
# neither the option nor the variable is set.
_Options = dict[str, tuple[Callable[[str], object], object]]
_CALL_OPTIONS: _Options = {
    "voice": (str, None),
    "greeting": (str, None),
    "max_sessions": (_positive, None),
    "log_level": (str, "INFO"),
    "log_json": (_switch, False),
}
_MODEL_OPTIONS: _Options = {
    "model": (str, AUTO_MODEL),
    "adapter": (str, ""),
    "device": (str, "auto"),
    "quantization": (str, "auto"),
    "kv_dtype": (str, "auto"),
    "context": (_frames, 0),
}
_EPILOG = """\
environment (an option wins over it; a .env file is read too):
  PERSONAPLEX_MODEL, PERSONAPLEX_ADAPTER, PERSONAPLEX_DEVICE, PERSONAPLEX_ENGINE,
  PERSONAPLEX_VOICE, PERSONAPLEX_PROMPT, PERSONAPLEX_GREETING, PERSONAPLEX_QUANTIZATION,
  PERSONAPLEX_KV_DTYPE, PERSONAPLEX_CONTEXT, PERSONAPLEX_MAX_SESSIONS,
  PERSONAPLEX_LOG_LEVEL, PERSONAPLEX_LOG_JSON       as the options above
  PERSONAPLEX_API_KEY                               for --engine, if its servers require a key
  HF_TOKEN                                          to download the gated 7B weights
  DAILY_API_KEY                                     for -t daily
  TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN             for -t twilio: verify requests, hang up
  TWILIO_API_KEY, TWILIO_API_SECRET                 to hang up with an API key in place of the token
  TWILIO_REGION, TWILIO_EDGE                        of the number, if not the United States
"""


class BotParser(argparse.ArgumentParser):
    """Parses the options that all bots share; Pipecat's runner adds its own and calls it.

    Args:
        description: Describes the bot in ``--help``.
        prompt: The role if no other is given.
        prepare: Called with all options once they are valid, before the server starts. It loads
            the model, so that the first caller does not wait for it.
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
            help="a folder with a release's files, a Hugging Face repo id, or nano, the small "
            "model in this package (default: auto, which is nvidia/personaplex-7b-v1 on a machine "
            "with a GPU and access to the weights, else nano)",
        )
        self.add_argument(
            "--adapter",
            metavar="FILE|FOLDER|REPO",
            help="a LoRA adapter in Kyutai's layout, merged into the model's weights (default: "
            "the checkpoint's own, if it names one)",
        )
        self.add_argument(
            "--device",
            metavar="auto|cpu|cuda|cuda:N",
            help="where the model runs (default: auto)",
        )
        self.add_argument(
            "--quantization",
            metavar="auto|none|int8|fp8|int4",
            help="store the model's weights in 8 or 4 bits: this takes less memory and is faster. "
            "none: the checkpoint's own format. auto, the default: none if that fits into memory, "
            "else int8, else int4",
        )
        self.add_argument(
            "--kv-dtype",
            metavar="auto|bfloat16|float32|fp8",
            help="data type of the model's keys and values: fp8 fits nearly twice the callers into "
            "the same memory (default: auto, the model's own type, but bfloat16 with low-bit "
            "weights on a CPU)",
        )
        self.add_argument(
            "--context",
            type=_frames,
            metavar="FRAMES",
            help="how far back the model remembers, in frames of 80 ms: a smaller context fits "
            "more callers into the same memory (default: 0, the model's own context)",
        )
        self.add_argument(
            "--engine",
            metavar="URL[,URL]",
            action="append",
            type=_urls,
            help="servers that run the model instead of this process: the address of `personaplex "
            "serve`, such as ws://127.0.0.1:8998, or of NVIDIA's server, with /api/chat; calls "
            "are distributed over several servers",
        )
        self.add_argument(
            "--voice",
            help="a voice of the model; `personaplex voices list` lists them",
        )
        self.add_argument(
            "--add-voice",
            metavar="NAME=FILE",
            action="append",
            help="an additional voice: a recording of one speaker, or a .pt or .safetensors voice "
            "file; may be repeated",
        )
        self.add_argument(
            "--prompt",
            metavar="TEXT",
            help="the agent's role, in plain words",
        )
        self.add_argument(
            "--greeting",
            metavar="TEXT",
            help="a sentence with which the agent opens every call",
        )
        self.add_argument(
            "--max-sessions",
            type=_positive,
            metavar="N",
            help="callers at the same time; the next one is refused as busy (default: the engine's "
            "number of slots, at most 8)",
        )
        self.add_argument(
            "--log-level",
            type=str.upper,
            choices=LOG_LEVELS,
            help="the least severe log lines that are written; at INFO a call is a handful of "
            "lines, at DEBUG it is many (default: INFO)",
        )
        self.add_argument(
            "--log-json",
            action="store_true",
            default=None,
            help="write log lines as JSON objects, one a line",
        )
        add_protection_options(self)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse and validate the options, then call ``prepare``."""
        for action in self._actions:
            if action.dest == "transport":  # the runner's option; bots support fewer transports
                action.choices = _TRANSPORTS
                action.help = "where callers come from (default: webrtc)"
            elif action.dest == "verbose":  # the runner's option
                action.help = "the same as --log-level DEBUG"
        restrict_runner_options(self)
        parsed: argparse.Namespace = super().parse_args(args, namespace)
        if parsed.direct:
            parsed.transport = parsed.transport or "daily"
        # Without a transport the runner would serve all of them, also those that are not checked.
        parsed.transport = parsed.transport or "webrtc"
        unsigned = parsed.allow_unsigned
        check_transport(parsed.transport, parsed.proxy, os.environ, allow_unsigned=unsigned)
        if parsed.verbose:
            parsed.log_level = "DEBUG"
        _fill(parsed, _CALL_OPTIONS | {"prompt": (str, self._prompt)}, os.environ)
        choose_engine(parsed, os.environ)
        parsed.add_voice = [named_voice(text) for text in parsed.add_voice or ()]
        self._prepare(parsed)
        return parsed

    def error(self, message: str) -> NoReturn:
        """Exit with a one-line error instead of the usage text."""
        print(f"error: {message}; see --help", file=sys.stderr)
        self.exit(2)


def check_transport(
    transport: str,
    proxy: str | None,
    environment: Mapping[str, str],
    *,
    allow_unsigned: bool = False,
) -> None:
    """Check that what a transport needs is installed and set.

    Raises:
        ConfigError: A package, a variable or an option is missing.
    """
    if transport == "daily":
        if importlib.util.find_spec("daily") is None:
            raise ConfigError("-t daily needs Daily's client; pip install 'pipecat-ai[daily]'")
        if not environment.get("DAILY_API_KEY"):
            raise ConfigError("-t daily needs DAILY_API_KEY; get one on dashboard.daily.co")
    if transport == "twilio":
        if not ACCOUNT_SID.fullmatch(environment.get("TWILIO_ACCOUNT_SID", "")):
            raise ConfigError(
                "-t twilio needs TWILIO_ACCOUNT_SID, AC and 32 hexadecimal digits; it is on "
                "console.twilio.com"
            )
        key = bool(environment.get("TWILIO_API_KEY"))
        if key != bool(environment.get("TWILIO_API_SECRET")):
            raise ConfigError("TWILIO_API_KEY and TWILIO_API_SECRET need each other")
        if bool(environment.get("TWILIO_REGION")) != bool(environment.get("TWILIO_EDGE")):
            raise ConfigError("TWILIO_REGION and TWILIO_EDGE need each other")
        if not environment.get("TWILIO_AUTH_TOKEN") and not (key and allow_unsigned):
            raise ConfigError(
                "-t twilio needs TWILIO_AUTH_TOKEN, with which Twilio signs its requests; it is on "
                "console.twilio.com"
            )
        if not proxy:
            raise ConfigError("-t twilio needs -x HOST, the public name that Twilio can reach")


def choose_engine(parsed: argparse.Namespace, environment: Mapping[str, str]) -> None:
    """Decide whether the model runs in this process or on servers.

    Any option wins over the environment. Sets ``parsed.engine`` to the servers' addresses, empty
    for a model in this process.

    Raises:
        ConfigError: ``--engine`` has no address, or is combined with an option of a local model.
    """
    urls = [url for option in parsed.engine or () for url in option]
    if parsed.engine and not urls:  # for example --engine "$VARIABLE" with an unset variable
        raise ConfigError("--engine needs an address, such as ws://127.0.0.1:8998")
    names = [*_MODEL_OPTIONS, "add_voice"]
    given = [name for name in names if getattr(parsed, name) is not None]
    if not urls and not given:
        urls = _urls(environment.get("PERSONAPLEX_ENGINE", ""))
    if not urls:
        _fill(parsed, _MODEL_OPTIONS, environment)
    elif given:
        raise ConfigError(
            f"--engine and --{given[0].replace('_', '-')} exclude each other: the servers have the "
            "model; give the option to `personaplex serve`"
        )
    parsed.engine = urls


def _urls(text: str) -> list[str]:
    return [url.strip() for url in text.split(",") if url.strip()]


def _fill(parsed: argparse.Namespace, options: _Options, environment: Mapping[str, str]) -> None:
    """Fill options that are not given from the environment; an empty variable counts as unset."""
    for name, (parse, default) in options.items():
        if getattr(parsed, name) is not None:
            continue
        variable = f"PERSONAPLEX_{name.upper()}"
        try:
            value = parse(text) if (text := environment.get(variable)) else default
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"{variable}: {error}") from None
        setattr(parsed, name, value)
