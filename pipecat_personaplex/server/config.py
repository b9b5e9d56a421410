"""What a server allows its clients."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pipecat_personaplex.errors import ConfigError

ANY_ORIGIN = "*"
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class ServerConfig:
    """Limits of a server, for all its clients alike.

    Attributes:
        max_connections: WebSockets at once; one more is refused before its upgrade.
        max_prompt_chars: Length of a text prompt.
        idle_seconds: A session with no audio from its client for so long ends.
        max_session_seconds: Length of a session; 0 for no limit.
        resume_seconds: How long a session whose connection broke keeps its slot.
        hello_seconds: How long a new connection may take to say what it wants.
        drain_seconds: How long running sessions may go on once the server is to stop.
        allow_origins: Pages whose browsers may connect, as ``"https://example.com"``; ``"*"`` for
            all. The server's own are always allowed, and so is who names none: no browser.
        max_unsent_frames: Frames that may wait for a client that does not read them.
    """

    max_connections: int = 1024
    max_prompt_chars: int = 4000
    idle_seconds: float = 60.0
    max_session_seconds: float = 0.0
    resume_seconds: float = 10.0
    hello_seconds: float = 10.0
    drain_seconds: float = 30.0
    allow_origins: tuple[str, ...] = ()
    max_unsent_frames: int = 50

    def __post_init__(self) -> None:
        for name, least in (
            ("max_connections", 1),
            ("max_prompt_chars", 0),
            ("max_unsent_frames", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")
        for name in ("idle_seconds", "hello_seconds"):
            self._check_seconds(name, zero=False)
        for name in ("max_session_seconds", "resume_seconds", "drain_seconds"):
            self._check_seconds(name, zero=True)
        for origin in self.allow_origins:
            if origin != ANY_ORIGIN and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"an allowed origin is * or like https://example.com (small letters, a port "
                    f"where there is one, no path), not {origin!r}"
                )

    def _check_seconds(self, name: str, *, zero: bool) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} must be a number, not {value!r}")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            least = "of at least 0" if zero else "above 0"
            raise ConfigError(f"{name} must be seconds {least}, not {value!r}")
