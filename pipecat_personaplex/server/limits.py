"""The limits of one session: idle time, total time, pace of the audio, length of texts."""

from __future__ import annotations

import asyncio

from pipecat_personaplex.asgi.token_bucket import TokenBucket
from pipecat_personaplex.async_session import AsyncSession
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import LimitReached
from pipecat_personaplex.server.config import ServerConfig

_BURST_SECONDS = 50 * FRAME_SECONDS
"""Audio that may arrive at once, such as after a pause of the network."""


class Limits:
    """Ends a session that is idle or lasts too long, and limits the pace of its audio.

    A session whose client is disconnected does not become idle; the registry ends it after
    ``resume_seconds``. The idle time counts from the latest audio, or from when the prompt was
    computed: a client may wait for that before it sends audio. Time without a connection does
    not count, but at most ``resume_seconds`` of it since that audio, so that a client cannot hold a
    slot by connecting and disconnecting without sending audio.

    Args:
        config: The limits.
        session: The session that they apply to.
    """

    def __init__(self, config: ServerConfig, session: AsyncSession):
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._idle_seconds = config.idle_seconds
        self._total_seconds = config.max_session_seconds
        self._resume_seconds = config.resume_seconds
        self._disconnected_at: float | None = None
        self._speed = config.max_speed
        # Seconds of audio. A client that resumes sends everything that it recorded meanwhile.
        burst = _BURST_SECONDS + config.resume_seconds
        self._audio = TokenBucket(self._speed, burst, self._loop.time())
        self.touch()
        self._idle_timer = self._loop.call_later(self._idle_seconds, self._check_idle)
        self._total_timer = self._loop.call_later(self._total_seconds, self._end_overlong)
        if not self._total_seconds:
            self._total_timer.cancel()

    def touch(self) -> None:
        """Restart the idle time: audio has arrived."""
        self._touched = self._loop.time()
        # Seconds without a client since then, at most resume_seconds.
        self._away_seconds = 0.0

    def consume(self, seconds: float) -> None:
        """Use up the allowance for audio that has just arrived.

        Args:
            seconds: Duration of the audio.

        Raises:
            LimitReached: Audio arrives faster than ``max_speed`` allows; its steps would slow down
                the other sessions.
        """
        if self._speed and not self._audio.take(self._loop.time(), seconds):
            raise LimitReached(f"audio comes faster than {self._speed:g} times real time")

    def client_disconnected(self) -> None:
        """Stop the idle time: the session waits for its client."""
        self._disconnected_at = self._loop.time()

    def client_connected(self) -> None:
        """Let the idle time go on; does nothing if the client was not disconnected."""
        if self._disconnected_at is None:
            return
        away = self._away_seconds + self._loop.time() - self._disconnected_at
        self._away_seconds = min(away, self._resume_seconds)
        self._disconnected_at = None
        if not self._idle_timer.cancelled():
            self._idle_timer.cancel()
            self._check_idle()

    def stop(self) -> None:
        """Stop the timers: the session has ended."""
        self._idle_timer.cancel()
        self._total_timer.cancel()

    def _check_idle(self) -> None:
        ready_at = self._session.ready_at
        # One timer that sets itself again is cheaper than a new timer for each frame.
        if ready_at is None:
            self.touch()
        else:
            self._touched = max(self._touched, ready_at)
        left = self._touched + self._away_seconds + self._idle_seconds - self._loop.time()
        if self._disconnected_at is not None:
            left = max(left, self._idle_seconds)
        if left > 0:
            self._idle_timer = self._loop.call_later(left, self._check_idle)
        else:
            self._session.end(LimitReached(f"no audio came for {self._idle_seconds:g} s"))

    def _end_overlong(self) -> None:
        self._session.end(LimitReached(f"a session may last {self._total_seconds:g} s"))


def check_length(what: str, text: str, config: ServerConfig) -> None:
    """Refuse a long text before it is tokenised, which takes time on the event loop.

    Args:
        what: Name of the text for the error message.
        text: A text prompt, or words to speak.
        config: The limits.

    Raises:
        LimitReached: The text has more than ``max_prompt_chars`` characters.
    """
    if len(text) > config.max_prompt_chars:
        raise LimitReached(f"{what} may have {config.max_prompt_chars} characters, not {len(text)}")
