"""A client's way to a session: its ticket, its limits, its bridge."""

from __future__ import annotations

import asyncio

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import EngineDraining, LimitReached
from pipecat_personaplex.server.bridge import Bridge, Drains
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.keys import Guest
from pipecat_personaplex.server.state import ServerState


class Limits:
    """Ends a session that lasts, or hears nothing, for longer than it may.

    Args:
        config: How long that is.
        bridge: The session.
    """

    def __init__(self, config: ServerConfig, bridge: Bridge):
        self._loop = asyncio.get_running_loop()
        self._bridge = bridge
        self._idle_seconds = config.idle_seconds
        self._total_seconds = config.max_session_seconds
        self.heard()
        self._idle = self._loop.call_later(self._idle_seconds, self._check_idle)
        self._total = self._loop.call_later(self._total_seconds, self._lasted)
        if not self._total_seconds:
            self._total.cancel()

    def heard(self) -> None:
        """There was audio."""
        self._heard = self._loop.time()

    def stop(self) -> None:
        """The session is over."""
        self._idle.cancel()
        self._total.cancel()

    def _check_idle(self) -> None:
        if not self._bridge.ready:
            self.heard()  # a client may wait for the prompt before it speaks
        # One timer that looks when it is due, instead of a new one with each frame.
        left = self._heard + self._idle_seconds - self._loop.time()
        if left > 0:
            self._idle = self._loop.call_later(left, self._check_idle)
        else:
            self._bridge.end(LimitReached(f"no audio came for {self._idle_seconds:g} s"))

    def _lasted(self) -> None:
        self._bridge.end(LimitReached(f"a session may last {self._total_seconds:g} s"))


def open_bridge(
    state: ServerState, guest: Guest, persona: Persona, sampling: SamplingParams
) -> tuple[Bridge, Limits]:
    """Let a guest in and open a session: one ticket, given back when the session is over.

    Raises:
        LimitReached: The prompt is too long, or the guest has its sessions.
        EngineDraining: The server is stopping.
        PersonaPlexError: As ``Engine.open_session``.
    """
    config = state.config
    if len(persona.text_prompt) > config.max_prompt_chars:
        raise LimitReached(
            f"a text prompt may have {config.max_prompt_chars} characters, not "
            f"{len(persona.text_prompt)}"
        )
    bridge = Bridge(config.max_unsent_frames)
    ticket = state.door.admit(
        guest,
        on_drain=lambda seconds: bridge.tell(Drains(seconds)),
        on_deadline=lambda: bridge.end(EngineDraining("the server has stopped")),
    )
    try:
        bridge.open(state.engine, persona, sampling)
    except BaseException:
        ticket.release()
        raise
    limits = Limits(config, bridge)
    bridge.call_when_over(limits.stop)
    bridge.call_when_over(ticket.release)
    return bridge, limits
