"""``personaplex serve``: the engine for clients elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipecat_personaplex.cli.options import EngineOptions, engine_options, named_voice
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.server.config import ServerConfig

if TYPE_CHECKING:
    from pipecat_personaplex.server.state import ServedEngine

EXAMPLES = """[bold]Examples[/bold]

personaplex serve --model ./personaplex-7b-v1 --max-sessions 8

personaplex keys new my-bot >> keys.txt

personaplex serve --host 0.0.0.0 --api-key-file keys.txt --ssl-certfile cert.pem \
--ssl-keyfile key.pem

personaplex serve --add-voice owen=owen.wav --allow-origin https://example.com"""

_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


@engine_options()
def serve(
    ctx: typer.Context,
    options: EngineOptions,
    max_sessions: Annotated[
        int | None,
        typer.Option(
            envvar="PERSONAPLEX_MAX_SESSIONS",
            min=1,
            help="Callers at once; one more is refused.",
            show_default=f"as many as fit into the device's memory, {DEFAULT_MAX_SESSIONS} at most",
            rich_help_panel="Model",
        ),
    ] = None,
    add_voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Offer a voice besides the checkpoint's: a recording of one speaker, or a .pt or "
            ".safetensors voice. May be given again.",
            rich_help_panel="Model",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            envvar="PERSONAPLEX_HOST",
            help="Where to listen: 0.0.0.0 for every IPv4 address of this machine, :: for IPv6 "
            "as well.",
            rich_help_panel="Address",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="PERSONAPLEX_PORT",
            min=0,
            max=65535,
            help="0 takes any that is free.",
            rich_help_panel="Address",
        ),
    ] = 8998,
    ssl_certfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Speak TLS with this certificate and its chain, PEM.",
            rich_help_panel="Address",
        ),
    ] = None,
    ssl_keyfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The certificate's private key, PEM, unless it is in the same file.",
            rich_help_panel="Address",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="PERSONAPLEX_API_KEY_FILE",
            metavar="FILE",
            help="Let in only who has a key: lines that [bold]personaplex keys new[/bold] made. "
            "SIGHUP reads it again.",
            rich_help_panel="Clients",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let browsers connect from pages of https://example.com; * for any page. May be "
            "given again.",
            rich_help_panel="Clients",
        ),
    ] = None,
    max_prompt_chars: Annotated[
        int,
        typer.Option(
            min=0, help="Length of a text prompt, and of words to say.", rich_help_panel="Clients"
        ),
    ] = ServerConfig.max_prompt_chars,
    max_speed: Annotated[
        float,
        typer.Option(
            help="How many times as fast as it is spoken a client's audio may come, such as 2; 0 "
            "for no limit.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.max_speed,
    idle_seconds: Annotated[
        float,
        typer.Option(
            help="End a session whose client sends no audio for so long.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.idle_seconds,
    max_session_seconds: Annotated[
        float,
        typer.Option(
            help="End a session after so long; 0 for no limit.", rich_help_panel="Clients"
        ),
    ] = ServerConfig.max_session_seconds,
    resume_seconds: Annotated[
        float,
        typer.Option(
            help="Keep a session whose connection broke for so long.", rich_help_panel="Clients"
        ),
    ] = ServerConfig.resume_seconds,
    drain_seconds: Annotated[
        float,
        typer.Option(
            help="After SIGTERM or Ctrl-C, let running sessions go on for so long.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.drain_seconds,
) -> None:
    """Serve the engine to clients elsewhere.

    Clients of NVIDIA's server connect to /api/chat as they are; bots with RemoteEngine to
    /v1/session. The port answers /healthz and /readyz while the model loads, and /metrics for
    Prometheus. SIGTERM or Ctrl-C ends the server when its sessions are over, a second one at once.
    """
    engine_config = replace(options.config, max_sessions=max_sessions or 0)
    voices = [named_voice(text) for text in add_voice or ()]
    _require_server()

    from pipecat_personaplex.server.admission import AdmissionController
    from pipecat_personaplex.server.auth import ApiKeys
    from pipecat_personaplex.server.runner import (
        Address,
        ServerRunner,
        allow_files,
        reload_keys_on_hangup,
    )
    from pipecat_personaplex.server.state import ServerState

    config = ServerConfig(
        max_prompt_chars=max_prompt_chars,
        idle_seconds=idle_seconds,
        max_session_seconds=max_session_seconds,
        resume_seconds=resume_seconds,
        drain_seconds=drain_seconds,
        allow_origins=tuple(allow_origin or ()),
        max_speed=max_speed,
    )
    _log(debug=ctx.obj.debug)
    keys = None if api_key_file is None else ApiKeys.read(api_key_file)
    if keys is None and host not in _THIS_MACHINE:
        typer.echo(
            f"warning: whoever reaches {host} can use this server; --api-key-file asks for keys",
            err=True,
        )

    def load() -> AbstractContextManager[ServedEngine]:
        from pipecat_personaplex.engine.engine import Engine

        engine = Engine.load(model, engine_config, progress=sys.stderr.isatty())
        for name, path in voices:
            engine.add_voice(name, path)
        return engine

    model = options.resolve_model()
    state = ServerState(config, Path(model).resolve().name, AdmissionController(config, keys))
    served = ServerRunner(state, Address(host, port, ssl_certfile, ssl_keyfile), load)
    allow_files(config.max_connections)
    if api_key_file is not None:
        reload_keys_on_hangup(state, api_key_file)
    if not served.run(lambda url: typer.echo(_announcement(state.model, url))):
        # The thread that loads has no end of its own, and may not be met by the interpreter's.
        os._exit(0)


def _require_server() -> None:
    for name in ("prometheus_client", "sphn", "starlette", "uvicorn"):
        if find_spec(name) is None:
            raise ConfigError(
                f"the server needs {name}: pip install -e '.[server]' in the checkout"
            )


def _announcement(model: str, url: str) -> str:
    socket_url = url.replace("http", "ws", 1)
    return f"{model} at {url}: {socket_url}/v1/session, {socket_url}/api/chat"


def _log(*, debug: bool) -> None:
    """Log who comes and goes, and what uvicorn and asyncio warn of."""
    from loguru import logger

    class ToLoguru(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            logger.opt(exception=record.exc_info).log(record.levelname, "{}", message)

    logger.remove()
    # Not diagnose: it prints the values of variables, among them keys and callers' prompts.
    level = "DEBUG" if debug else "INFO"
    logger.add(sys.stderr, level=level, diagnose=False, backtrace=False)
    logging.basicConfig(handlers=[ToLoguru()], level=logging.WARNING, force=True)
