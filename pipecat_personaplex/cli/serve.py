"""``personaplex serve``: the engine as a server for remote clients."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipecat_personaplex.cli.options import (
    EngineOptions,
    engine_options,
    log_level_option,
    named_voice,
)
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.logs import configure_logging
from pipecat_personaplex.process import frozen_objects
from pipecat_personaplex.server.config import ServerConfig

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from pipecat_personaplex.server.state import ServedEngine

EXAMPLES = """[bold]Examples[/bold]

personaplex serve --model ./personaplex-7b-v1 --max-sessions 8

personaplex keys new my-bot >> keys.txt

personaplex serve --host 0.0.0.0 --api-key-file keys.txt --ssl-certfile cert.pem \
--ssl-keyfile key.pem

personaplex serve --add-voice owen=owen.wav --allow-origin https://example.com"""

SERVER_PACKAGES = ("prometheus_client", "sphn", "starlette", "uvicorn")
"""Packages that ``serve`` needs; the extra ``server`` installs them. Opus is optional."""
_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@engine_options()
def serve(
    ctx: typer.Context,
    options: EngineOptions,
    max_sessions: Annotated[
        int | None,
        typer.Option(
            envvar="PERSONAPLEX_MAX_SESSIONS",
            min=1,
            help="Sessions at once; further callers are refused.",
            show_default=f"as many as fit into the device's memory, at most {DEFAULT_MAX_SESSIONS}",
            rich_help_panel="Model",
        ),
    ] = None,
    add_voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Add a voice to those of the checkpoint: a recording of one speaker, or a .pt or "
            ".safetensors voice file. May be repeated.",
            rich_help_panel="Model",
        ),
    ] = None,
    max_queued_frames: Annotated[
        int,
        typer.Option(
            min=1,
            help="Input frames of 80 ms that may wait in a session's queue; the oldest is dropped "
            "if there are more.",
            rich_help_panel="Model",
        ),
    ] = EngineConfig.max_queued_frames,
    prefix_cache_bytes: Annotated[
        int,
        typer.Option(
            min=0,
            help="Memory for computed prompts, which sessions with the same persona reuse.",
            rich_help_panel="Model",
        ),
    ] = EngineConfig.prefix_cache_bytes,
    prefill_chunk: Annotated[
        int,
        typer.Option(
            min=1,
            help="Frames of a new session's prompt that are computed between two steps. A small "
            "chunk delays running sessions less, a large one makes the new session ready sooner.",
            rich_help_panel="Model",
        ),
    ] = EngineConfig.prefill_chunk,
    host: Annotated[
        str,
        typer.Option(
            envvar="PERSONAPLEX_HOST",
            help="Address to listen on: 0.0.0.0 for all IPv4 addresses of this machine, :: for "
            "IPv6 as well.",
            rich_help_panel="Address",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            envvar="PERSONAPLEX_PORT",
            min=0,
            max=65535,
            help="Port to listen on; 0 for any free port.",
            rich_help_panel="Address",
        ),
    ] = 8998,
    health_port: Annotated[
        int | None,
        typer.Option(
            envvar="PERSONAPLEX_HEALTH_PORT",
            min=0,
            max=65535,
            help="Serve /healthz, /readyz and /metrics at a port of their own, without TLS, which "
            "clients need not reach.",
            show_default="the port above",
            rich_help_panel="Address",
        ),
    ] = None,
    page: Annotated[
        bool,
        typer.Option(
            "--page",
            help="Also serve a page at / to talk to the model in a browser.",
            rich_help_panel="Address",
        ),
    ] = False,
    ssl_certfile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Use TLS with this certificate and its chain, PEM.",
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
            help="Accept only clients with a key of this file, whose lines [bold]personaplex keys "
            "new[/bold] prints. SIGHUP reads it again.",
            rich_help_panel="Clients",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Allow web pages of this origin to connect, such as https://example.com; * for "
            "all pages. May be repeated.",
            rich_help_panel="Clients",
        ),
    ] = None,
    max_connections: Annotated[
        int,
        typer.Option(
            min=1,
            help="WebSockets at once; further ones are refused before their upgrade.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.max_connections,
    address_rate: Annotated[
        float,
        typer.Option(
            help="New connections a second from one address; further ones are closed. 0 for no "
            "limit: behind a proxy, all clients have its address.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.address_rate,
    max_prompt_chars: Annotated[
        int,
        typer.Option(
            min=0,
            help="Maximum length of a text prompt, and of words to speak.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.max_prompt_chars,
    max_speed: Annotated[
        float,
        typer.Option(
            help="How many times faster than real time a client may send audio for long; 0 for no "
            "limit.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.max_speed,
    max_unsent_frames: Annotated[
        int,
        typer.Option(
            min=1,
            help="Frames of 80 ms that may wait for a client that does not read; its session ends "
            "if there are more.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.max_unsent_frames,
    hello_seconds: Annotated[
        float,
        typer.Option(
            help="Close a new connection that has not sent its request, or its first message, "
            "after this time.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.hello_seconds,
    idle_seconds: Annotated[
        float,
        typer.Option(
            help="End a session whose client sends no audio for this time.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.idle_seconds,
    max_session_seconds: Annotated[
        float,
        typer.Option(
            help="End a session after this time; 0 for no limit.", rich_help_panel="Clients"
        ),
    ] = ServerConfig.max_session_seconds,
    resume_seconds: Annotated[
        float,
        typer.Option(
            help="How long a session whose connection broke waits for its client.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.resume_seconds,
    drain_seconds: Annotated[
        float,
        typer.Option(
            help="How long running sessions may continue after SIGTERM or Ctrl-C.",
            rich_help_panel="Clients",
        ),
    ] = ServerConfig.drain_seconds,
    log_level: Annotated[
        str | None,
        log_level_option("info", "Log"),
    ] = None,
    log_json: Annotated[
        bool,
        typer.Option(
            "--log-json",
            envvar="PERSONAPLEX_LOG_JSON",
            help="Write each log line as a JSON object.",
            rich_help_panel="Log",
        ),
    ] = False,
) -> None:
    """Serve the engine to remote clients.

    Clients of NVIDIA's server connect to /api/chat without changes; bots with RemoteEngine connect
    to /v1/session. The port serves /healthz and /readyz while the model loads, and /metrics for
    Prometheus. SIGTERM or Ctrl-C stops the server when its sessions have ended; a second one stops
    it at once.
    """
    configure_logging(log_level or ("debug" if ctx.obj.debug else "info"), as_json=log_json)
    engine_config = replace(
        options.config,
        max_sessions=max_sessions or 0,
        max_queued_frames=max_queued_frames,
        prefix_cache_bytes=prefix_cache_bytes,
        prefill_chunk=prefill_chunk,
    )
    added_voices = [named_voice(text) for text in add_voice or ()]
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
        max_connections=max_connections,
        address_rate=address_rate,
        max_prompt_chars=max_prompt_chars,
        idle_seconds=idle_seconds,
        max_session_seconds=max_session_seconds,
        resume_seconds=resume_seconds,
        hello_seconds=hello_seconds,
        drain_seconds=drain_seconds,
        allow_origins=tuple(allow_origin or ()),
        max_unsent_frames=max_unsent_frames,
        max_speed=max_speed,
    )
    keys = None if api_key_file is None else ApiKeys.read(api_key_file)
    if keys is None and host not in _LOOPBACK_HOSTS:
        typer.echo(
            f"warning: everyone who can reach {host} can use this server; --api-key-file lets in "
            "only clients with a key",
            err=True,
        )

    @contextmanager
    def load() -> Generator[ServedEngine, None, None]:
        from pipecat_personaplex.engine.engine import Engine

        engine = Engine.load(model, engine_config, progress=sys.stderr.isatty())
        for name, path in added_voices:
            engine.add_voice(name, path)
        with engine, frozen_objects():
            yield engine

    model = options.resolve_model()
    state = ServerState(config, Path(model).resolve().name, AdmissionController(config, keys))
    more_routes: list[BaseRoute] = []
    if page:
        from pipecat_personaplex.talk.served_page import page_routes

        more_routes = page_routes(state, model)
    address = Address(host, port, ssl_certfile, ssl_keyfile, health_port)
    runner = ServerRunner(state, address, load, more_routes)
    allow_files(config.max_connections)
    reload_keys_on_hangup(state, api_key_file)
    if not runner.run(lambda url: typer.echo(_announcement(state.model, url))):
        # The thread that loads the model still runs, and would crash when the interpreter exits.
        os._exit(0)


def _require_server() -> None:
    for name in SERVER_PACKAGES:
        if find_spec(name) is None:
            raise ConfigError(f"the server needs {name}: pip install 'pipecat-personaplex[server]'")


def _announcement(model: str, url: str) -> str:
    socket_url = url.replace("http", "ws", 1)
    return f"{model} at {url}: {socket_url}/v1/session, {socket_url}/api/chat"
