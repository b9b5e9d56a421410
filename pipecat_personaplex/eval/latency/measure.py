"""Mouth-to-ear latency of a target, and the floor of its transport."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, get_args

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.eval.addresses import split_address
from pipecat_personaplex.eval.latency.probe import Latencies, Line, probe, tone
from pipecat_personaplex.eval.latency.server_line import ServerLine, server_echo
from pipecat_personaplex.eval.latency.telephone_line import TelephoneLine, telephone_echo
from pipecat_personaplex.eval.latency.webrtc_line import WebRtcLine, over_http, webrtc_echo

Transport = Literal["webrtc", "twilio", "server"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
BOT_URL = "http://localhost:7860"
"""Where the bots listen by default; the target ``bot``."""


@dataclass(frozen=True)
class Target:
    """What is measured.

    Attributes:
        url: Its address.
        transport: How it is called.
        prompt: For a server: the agent's text prompt.
        voice: For a server: the agent's voice; empty for the first.
        api_key: For a server, or a bot over WebRTC, that requires one.
    """

    url: str
    transport: Transport
    prompt: str = ""
    voice: str = ""
    api_key: str | None = None

    @classmethod
    def parse(cls, text: str, transport: Transport | None = None) -> Target:
        """Parse ``bot`` or a URL.

        ``http`` is a bot over WebRTC; ``ws`` is a server, or with a path that ends in ``/ws`` a
        bot on the telephone.

        Raises:
            ConfigError: The URL is not valid, or does not fit the transport.
        """
        url = BOT_URL if text == "bot" else text
        parts = split_address(url, ("http", "https", "ws", "wss"))
        if parts is None:
            raise ConfigError(
                f"{text!r} must be bot, http://host:port (WebRTC), ws://host:port (a server) or "
                "ws://host:port/ws (the telephone), with a port from 1 to 65535"
            )
        websocket = parts.scheme in ("ws", "wss")
        guess: Transport = "webrtc"
        if websocket:
            guess = "twilio" if parts.path.rstrip("/").endswith("/ws") else "server"
        chosen = transport or guess
        if (chosen == "webrtc" and websocket) or (chosen == "twilio" and not websocket):
            raise ConfigError(f"{text}: --transport {chosen} does not fit this address")
        return cls(url, chosen)

    def open(self) -> AbstractAsyncContextManager[Line]:
        """A call to the target."""
        if self.transport == "webrtc":
            return WebRtcLine(over_http(self.url, self.api_key))
        if self.transport == "twilio":
            return TelephoneLine(self.url)
        return ServerLine(self.url, self.prompt, self.voice, self.api_key)

    def open_echo(self) -> AbstractAsyncContextManager[Line]:
        """A call to an echo on this machine, over the same transport."""
        if self.transport == "webrtc":
            return webrtc_echo()
        return telephone_echo() if self.transport == "twilio" else server_echo()


async def measure(target: Target, sound: Pcm | None, count: int) -> Latencies:
    """Measure a target.

    Args:
        target: A bot or a server.
        sound: What the caller says, and after whose end latency counts; None for tones, after
            whose start it counts: for an echo.
        count: How many times.

    Raises:
        EngineUnreachable: Nothing answers, or no audio arrives.
    """
    async with target.open() as line:
        if sound is None:
            return await probe(line, tone(), count, from_end=False)
        return await probe(line, sound, count, from_end=True)


async def measure_floor(target: Target, echo: Target | None, count: int) -> Latencies:
    """Measure an echo over the same transport with tones.

    Args:
        target: The target whose transport is measured.
        echo: An echo bot that the user runs; None for one on this machine.
        count: How many times.
    """
    if echo is not None:
        return await measure(echo, None, count)
    async with target.open_echo() as line:
        return await probe(line, tone(), count, from_end=False)
