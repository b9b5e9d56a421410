"""The limits of one client's session, and how a session is opened under them.

A session has one end, ``AsyncSession.end``, whoever asks for it: the engine, a limit, the server at
its drain deadline, an endpoint whose client has left, or the registry when nobody resumes in time.
``end`` closes the engine's session and runs the callbacks that ``open_admitted_session`` added:
timers stop and the permit is released. An endpoint that opened a session must call ``end``.
"""

from __future__ import annotations

import asyncio

from pipecat_personaplex.async_session import AsyncSession, Draining
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import EngineDraining, LimitReached
from pipecat_personaplex.server.auth import ApiClient
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.state import ServerState

_BURST_SECONDS = 50 * FRAME_SECONDS
"""Of audio that may come at once, after a network's pause."""


class Limits:
    """Ends a session that lasts, or hears nothing, for longer than it may; and sets its pace.

    A client that is away is not idle meanwhile: whoever lets a session wait for it ends the session
    when it has waited for ``resume_seconds``. What counts is when audio came last, so that a client
    cannot hold a slot by coming and going: all its absences together prolong the time by
    ``resume_seconds`` at most.

    Args:
        config: How long that is.
        bridge: The session.
    """

    def __init__(self, config: ServerConfig, bridge: AsyncSession):
        self._loop = asyncio.get_running_loop()
        self._bridge = bridge
        self._idle_seconds = config.idle_seconds
        self._total_seconds = config.max_session_seconds
        self._resume_seconds = config.resume_seconds
        self._left: float | None = None
        self._speed = config.max_speed
        # A client that resumes sends all at once what it could not send meanwhile.
        self._most = self._credit = _BURST_SECONDS + config.resume_seconds
        self._credited = self._loop.time()
        self.heard()
        self._idle = self._loop.call_later(self._idle_seconds, self._check_idle)
        self._total = self._loop.call_later(self._total_seconds, self._lasted)
        if not self._total_seconds:
            self._total.cancel()

    def heard(self) -> None:
        """There was audio."""
        self._heard = self._loop.time()
        self._away = 0.0

    def check_pace(self, seconds: float) -> None:
        """Refuse audio that comes faster than it may: its steps are taken from other callers.

        Args:
            seconds: Of audio, that came just now.

        Raises:
            LimitReached: It does.
        """
        if not self._speed:
            return
        now = self._loop.time()
        self._credit = min(self._most, self._credit + self._speed * (now - self._credited))
        self._credited = now
        if seconds > self._credit:
            raise LimitReached(f"audio comes faster than {self._speed:g} times real time")
        self._credit -= seconds

    def left(self) -> None:
        """The client is away, and waited for."""
        self._left = self._loop.time()

    def returned(self) -> None:
        """It is back, or was not away."""
        if self._left is None:
            return
        away = self._away + self._loop.time() - self._left
        self._away, self._left = min(away, self._resume_seconds), None
        if not self._idle.cancelled():
            self._idle.cancel()
            self._check_idle()

    def stop(self) -> None:
        """The session is over."""
        self._idle.cancel()
        self._total.cancel()

    def _check_idle(self) -> None:
        if not self._bridge.ready:
            self.heard()  # a client may wait for the prompt before it speaks
        # One timer that looks when it is due, instead of a new one with each frame.
        left = self._heard + self._away + self._idle_seconds - self._loop.time()
        if self._left is not None:
            left = max(left, self._idle_seconds)
        if left > 0:
            self._idle = self._loop.call_later(left, self._check_idle)
        else:
            self._bridge.end(LimitReached(f"no audio came for {self._idle_seconds:g} s"))

    def _lasted(self) -> None:
        self._bridge.end(LimitReached(f"a session may last {self._total_seconds:g} s"))


def check_length(what: str, text: str, config: ServerConfig) -> None:
    """Refuse a text before it is spelt, which takes the event loop's time.

    Raises:
        LimitReached: It is too long.
    """
    if len(text) > config.max_prompt_chars:
        raise LimitReached(f"{what} may have {config.max_prompt_chars} characters, not {len(text)}")


def open_admitted_session(
    state: ServerState, guest: ApiClient, persona: Persona, sampling: SamplingParams
) -> tuple[AsyncSession, Limits]:
    """Let a guest in and open a session: one ticket, given back when the session is over.

    Raises:
        LimitReached: The prompt is too long, or the guest has its sessions.
        EngineDraining: The server is stopping.
        PersonaPlexError: As ``Engine.open_session``.
    """
    config = state.config
    check_length("a text prompt", persona.text_prompt, config)
    bridge = AsyncSession(config.max_unsent_frames)
    ticket = state.door.admit(
        guest,
        on_drain=lambda seconds: bridge.put(Draining(seconds)),
        on_deadline=lambda: bridge.end(EngineDraining("the server has stopped")),
    )
    try:
        bridge.open(state.engine, persona, sampling)
    except BaseException:
        ticket.release()
        raise
    limits = Limits(config, bridge)
    bridge.add_end_callback(limits.stop)
    bridge.add_end_callback(ticket.release)
    return bridge, limits
