"""Options with which an operator protects a bot that strangers can reach."""

from __future__ import annotations

import argparse
import math

_SILENT_SECONDS = 60.0


def seconds(text: str) -> float:
    """Parse a duration; 0 for no limit."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def add_protection_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of a bot."""
    parser.add_argument(
        "--connect-seconds",
        type=seconds,
        metavar="SECONDS",
        help="a call that is not connected after this time ends, 0 for no limit (default: 20; for "
        "a Daily room 120, in which a person joins)",
    )
    parser.add_argument(
        "--silent-seconds",
        type=seconds,
        default=_SILENT_SECONDS,
        metavar="SECONDS",
        help="a call from which no audio arrives for this time ends, 0 for no limit (default: 60)",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="clients of the page need a key of this file, as `personaplex keys new` makes them; "
        "a browser asks for it as a password",
    )
    parser.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="-t twilio: do not verify that requests come from Twilio; for tests only",
    )


def restrict_runner_options(parser: argparse.ArgumentParser) -> None:
    """Change options that Pipecat's runner has added: help texts and unsafe defaults."""
    for action in parser._actions:
        match action.dest:
            case "dialin":
                action.default = False
                action.help = (
                    "-t daily: accept telephone calls. Without an --api-key-file, anybody "
                )
                action.help += "can call the webhook that starts them (default: off)"
            case "allowed_origins":
                action.help = "origins of web pages that may connect in addition to the bot's own, "
                action.help += "such as https://example.com; * for all. Without an --api-key-file, "
                action.help += "only an IP address or localhost counts as the bot's own"


def connect_seconds(args: argparse.Namespace) -> float | None:
    """How long a call may take to connect; None for no limit."""
    given: float | None = getattr(args, "connect_seconds", None)
    if given is None:
        given = 120.0 if args.transport == "daily" else 20.0
    return given or None


def silent_seconds(args: argparse.Namespace) -> float | None:
    """For how long a call may bring no audio; None for no limit."""
    given: float = getattr(args, "silent_seconds", _SILENT_SECONDS)
    return given or None
