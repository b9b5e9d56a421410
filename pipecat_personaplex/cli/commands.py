"""The ``personaplex`` command: its subcommands, its global options and its exit codes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from typing import Annotated

import typer

from pipecat_personaplex import __version__
from pipecat_personaplex.cli import bench, doctor, drift, offline, quantize, serve, sizing, talk
from pipecat_personaplex.cli.eval import evaluation
from pipecat_personaplex.cli.keys import keys
from pipecat_personaplex.cli.voices import voices
from pipecat_personaplex.errors import PersonaPlexError, UserError
from pipecat_personaplex.logs import configure_logging

_FAILURE, _USER_ERROR, _INTERRUPTED = 1, 2, 130
_COMPLETION = "_PERSONAPLEX_COMPLETE"
# Errors of a path that the user can correct.
_PATH_ERRNOS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)

app = typer.Typer(
    help="NVIDIA PersonaPlex, a model that listens and speaks at the same time.",
    epilog="Each command has a help page: [bold]personaplex offline --help[/bold]",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.command(epilog=talk.EXAMPLES)(talk.talk)
app.command(epilog=offline.EXAMPLES)(offline.offline)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=drift.EXAMPLES)(drift.drift)
app.command(epilog=sizing.EXAMPLES)(sizing.sizing)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command(epilog=quantize.EXAMPLES)(quantize.quantize)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(evaluation, name="eval")
app.add_typer(voices, name="voices")
app.add_typer(keys, name="keys")


@dataclass
class _Settings:
    """The options before the name of a command."""

    debug: bool = False


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"personaplex {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    ctx: typer.Context,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Log at level DEBUG, and print the traceback of an error."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    settings: _Settings = ctx.obj
    settings.debug = debug
    configure_logging("DEBUG" if debug else "WARNING")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code: 0 for success, 1 for a failure, 2 for a mistake that the user can correct,
        130 for Ctrl-C.
    """
    settings = _Settings()
    _prepare_streams()
    command = typer.main.get_command(app)
    if argv is None and _COMPLETION in os.environ:
        # The shell asks for the words that may follow; Typer prints them and exits.
        command.main(prog_name="personaplex")
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with command.make_context("personaplex", arguments, obj=settings) as ctx:
            command.invoke(ctx)
        sys.stdout.flush()
        return 0
    except typer.Exit as ended:
        return ended.exit_code
    except (Exception, KeyboardInterrupt) as error:
        explained = _explain(error)
        if explained is None:
            raise
        if settings.debug:
            traceback.print_exc()
        code, message = explained
        if code == _INTERRUPTED and argv is None:
            # A second Ctrl-C must not print a traceback while the interpreter exits.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # If Ctrl-C came within ``exec`` of a text, as when a dataclass is built, ``python -m``
            # ends by the signal and not with this code. Another ``exec`` clears that.
            exec("")
        if message:
            print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return code


def _prepare_streams() -> None:
    """Let no output fail: a command that has done its work must not crash while it prints.

    A console may have an encoding such as cp1252, which lacks most characters, and a name of a file
    may hold bytes that are no characters. Both are written as escapes. A process without a console
    has no streams.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error is a Ctrl-C, or wraps one, as Python does while it builds a class."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _explain(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the message of an error; None if it is a bug of this package."""
    match error:
        case typer.TyperException():
            # Without a command, Typer has printed the help and the message is empty.
            message, ctx = error.format_message(), getattr(error, "ctx", None)
            if message and ctx is not None:
                message = f"{message.rstrip('.')}; see {ctx.command_path} --help"
            return _USER_ERROR, message
        case UserError():
            return _USER_ERROR, str(error)
        case PersonaPlexError():
            return _FAILURE, str(error)
        case BrokenPipeError():
            # Otherwise Python flushes the rest at exit and prints a second error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _FAILURE, "the output was closed before all of it was written"
        case UnicodeError():
            return _USER_ERROR, f"a name or a text is not valid Unicode: {error}"
        case OSError():
            path = "" if error.filename is None else f"{error.filename}: "
            code = _USER_ERROR if error.errno in _PATH_ERRNOS else _FAILURE
            return code, f"{path}{error.strerror or error}"
        case _ if _was_interrupted(error):
            return _INTERRUPTED, "interrupted"
    return None
