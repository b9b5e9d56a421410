"""``personaplex talk``: talk to the model in a browser."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import SplitResult, urlsplit

import typer

from pipecat_personaplex.cli.options import (
    EngineOptions,
    engine_options,
    log_level_option,
    named_voice,
)
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS
from pipecat_personaplex.errors import ConfigError, VoiceNotFound
from pipecat_personaplex.logs import configure_logging
from pipecat_personaplex.talk.client_text import hide_client_text

if TYPE_CHECKING:
    from pipecat_personaplex.talk.local_engine import LocalEngine

EXAMPLES = """[bold]Examples[/bold]

personaplex talk

personaplex talk --voice NATM1 --prompt "You enjoy having a good conversation."

personaplex talk --add-voice owen=owen.wav --voice owen --greeting "Hello, this is Owen."

personaplex talk --share-on-lan"""

TALK_PACKAGES = ("aiortc", "fastapi", "uvicorn")
# Never contacted: connecting a UDP socket sends nothing, and chooses the address for a route.
_ELSEWHERE = ("192.0.2.1", 9)


@engine_options()
def talk(
    ctx: typer.Context,
    options: EngineOptions,
    voice: Annotated[
        str | None,
        typer.Option(
            envvar="PERSONAPLEX_VOICE",
            help="The voice to begin with; the page can change it.",
            show_default="the model's first",
            rich_help_panel="Agent",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            envvar="PERSONAPLEX_PROMPT",
            help="The role to begin with, in plain words; the page can change it.",
            show_default="one that the model knows",
            rich_help_panel="Agent",
        ),
    ] = None,
    greeting: Annotated[
        str,
        typer.Option(
            envvar="PERSONAPLEX_GREETING",
            help="A sentence with which the agent opens each call.",
            show_default="none: you speak first",
            rich_help_panel="Agent",
        ),
    ] = "",
    add_voice: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Add a voice: a recording of one speaker, or a .pt or .safetensors voice file. "
            "May be repeated.",
            rich_help_panel="Agent",
        ),
    ] = None,
    transcribe: Annotated[
        str | None,
        typer.Option(
            metavar="WHISPER",
            help="Also write down what you say, with this Whisper model (tiny.en, base.en, ... or "
            "a folder of faster-whisper). The model itself hears, and writes nothing down. Needs "
            "pip install 'pipecat-personaplex\\[whisper]'.",
            show_default="off",
            rich_help_panel="Agent",
        ),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="Port of the page; 0 takes a free one.", rich_help_panel="Page"
        ),
    ] = 7860,
    no_browser: Annotated[
        bool,
        typer.Option("--no-browser", help="Open no browser.", rich_help_panel="Page"),
    ] = False,
    share_on_lan: Annotated[
        bool,
        typer.Option(
            "--share-on-lan",
            help="Let other devices in this network open the page, such as a telephone. Browsers "
            "give the microphone to https pages alone, so a certificate is made on the spot; the "
            "browser warns of it once.",
            rich_help_panel="Page",
        ),
    ] = False,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The address of a proxy with https in front of this command, such as that of a "
            "notebook; the proxy may remove a path. Everyone who can open it can talk: the page "
            "has no password.",
            rich_help_panel="Page",
        ),
    ] = None,
    ice_server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVER",
            help="A server that helps browsers in other networks to connect: stun:HOST:PORT or "
            "turn:HOST:PORT,USER,PASSWORD. May be repeated. None is contacted otherwise.",
            rich_help_panel="Page",
        ),
    ] = None,
    max_sessions: Annotated[
        int | None,
        typer.Option(
            envvar="PERSONAPLEX_MAX_SESSIONS",
            min=1,
            help="Calls at once; further callers are refused.",
            show_default=f"as many as fit into the device's memory, at most {DEFAULT_MAX_SESSIONS}",
            rich_help_panel="Page",
        ),
    ] = None,
    prebuilt: Annotated[
        bool,
        typer.Option(
            "--prebuilt",
            help="Also serve Pipecat's own page, at /client/. It loads a script from the internet.",
            rich_help_panel="Page",
        ),
    ] = False,
    log_level: Annotated[
        str,
        log_level_option("warning", "Page"),
    ] = "warning",
) -> None:
    """Talk to the model in a browser: one command, one page, no account and no cloud.

    Without a GPU it runs nano, a small demonstration model that is part of this package.
    """
    _require_packages(transcribe)
    level = "debug" if ctx.obj.debug else log_level
    quiet = ["pipecat", "pipecat_personaplex.service", "aiortc", "aioice"]
    configure_logging(level, quiet=quiet)
    hide_client_text(level)
    added = [named_voice(text) for text in add_voice or ()]
    public = None if public_url is None else _public_address(public_url)
    if public is not None and share_on_lan:
        raise ConfigError("choose --public-url or --share-on-lan: a proxy brings its own https")

    from pipecat_personaplex.server.listen import open_socket

    address = _lan_address() if share_on_lan else "localhost"
    # Before anything slow is imported or loaded: the port may be in use.
    with open_socket("0.0.0.0" if share_on_lan else "127.0.0.1", port) as listening:
        scheme = "https" if share_on_lan else "http"
        url = public_url or f"{scheme}://{address}:{listening.getsockname()[1]}"

        from pipecat_personaplex.talk.ice import parse_ice_server

        ice_servers = tuple(parse_ice_server(text) for text in ice_server or ())
        model, note = _resolve_model(options)
        config = replace(options.config, max_sessions=max_sessions or 0)
        _check_voice(model, voice, [name for name, _ in added])
        typer.echo(f"loading {model} ...", err=True)

        from pipecat_personaplex.asgi.origin_text import origin_of
        from pipecat_personaplex.talk.about import describe_model
        from pipecat_personaplex.talk.certificate import self_signed
        from pipecat_personaplex.talk.host import TalkHost, TalkOptions
        from pipecat_personaplex.talk.local_engine import LocalEngine
        from pipecat_personaplex.talk.serving import TalkServer
        from pipecat_personaplex.talk.transcriber import Whisper

        whisper = None if transcribe is None else Whisper(transcribe)

        def load() -> LocalEngine:
            if whisper is not None:
                whisper.load()
            local = LocalEngine(model, config, progress=sys.stderr.isatty())
            for name, path in added:
                local.engine.add_voice(name, path)
            return local

        def ready() -> None:
            typer.echo(f"Talk to {model} at {url}  (Ctrl-C ends it)")
            if share_on_lan:
                typer.echo("Everyone in this network can open it; the browser warns once: go on.")
            if not no_browser and _has_browser():
                webbrowser.open(url)

        host = TalkHost(
            describe_model(model),
            TalkOptions(
                voice=voice,
                prompt=prompt,
                greeting=greeting,
                note=note,
                ice_servers=ice_servers,
                transcriber=None if whisper is None else whisper.create,
                prebuilt=prebuilt,
            ),
        )
        names = [address, socket.gethostname(), "localhost", "127.0.0.1"]
        hosts = names if share_on_lan else [public.hostname or ""] if public else []
        server = TalkServer(
            host,
            listening,
            load,
            tls=self_signed(names) if share_on_lan else None,
            hosts=frozenset(hosts),
            origins=frozenset([origin_of(public)] if public else ()),
        )
        if not server.run(ready):
            # The loading thread still runs, and would crash when the interpreter exits.
            os._exit(0)


def _require_packages(transcribe: str | None) -> None:
    if any(find_spec(name) is None for name in TALK_PACKAGES):
        raise ConfigError("personaplex talk needs more: pip install 'pipecat-personaplex[talk]'")
    if transcribe is not None and find_spec("faster_whisper") is None:
        raise ConfigError(
            "--transcribe needs a package: pip install 'pipecat-personaplex[whisper]'"
        )


def _public_address(url: str) -> SplitResult:
    """Check the address of a proxy."""
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        port = -1
    if port == -1 or address.scheme not in ("http", "https") or not address.hostname:
        raise ConfigError(
            f"--public-url must be an address such as https://talk.example.com/, not {url[:80]!r}"
        )
    if address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1"):
        raise ConfigError("--public-url must begin with https: browsers give http no microphone")
    return address


def _resolve_model(options: EngineOptions) -> tuple[str, str]:
    """The model to load, and why it was chosen; no reason if the user named it."""
    from pipecat_personaplex.checkpoint.hub import resolve_model

    model, note = resolve_model(options.model, options.config.device)
    if note:
        typer.echo(note, err=True)
    return model, note or ""


def _check_voice(model: str, voice: str | None, added: list[str]) -> None:
    """Refuse an unknown voice before gigabytes of weights are loaded."""
    if voice is None or voice in added or (not Path(model).is_dir() and model != "nano"):
        return
    from pipecat_personaplex.checkpoint.voices import VoiceLibrary

    known = VoiceLibrary.of_model(model, progress=False).names
    if voice not in known:
        raise VoiceNotFound(voice, [*known, *added])


def _lan_address() -> str:
    """This machine's address in its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            raise ConfigError("--share-on-lan: this machine is in no network") from None
        return str(probe.getsockname()[0])


def _has_browser() -> bool:
    """Whether a browser would have a screen; text browsers have no microphone."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
