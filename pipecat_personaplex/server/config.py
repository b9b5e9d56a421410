"""The limits that a server sets its clients."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipecat_personaplex.asgi.origin_text import ANY_ORIGIN, origin_of
from pipecat_personaplex.errors import ConfigError

_MAX_RESUME_SECONDS = 300.0
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True)
class ServerConfig:
    """Limits of a server; they apply to all clients alike.

    Attributes:
        max_connections: WebSockets open at once; further ones are refused before their upgrade.
        address_rate: New connections a second from one address (for IPv6, from one /64 network); 0
            for no limit, such as behind a proxy that hides the addresses. As many as
            ``max_connections`` may come at once, or those of ten seconds if that is more. Further
            ones are closed.
        max_prompt_chars: Length of a text prompt, and of words to speak.
        idle_seconds: A session whose client sends no audio for this time ends.
        max_session_seconds: Duration of a session; 0 for no limit.
        resume_seconds: How long a session whose connection broke holds its slot and waits for its
            client; at most 300, because the server stores the frames of that time.
        hello_seconds: How long a new connection may take to send its request, its TLS handshake
            and its first message, and to read the response.
        drain_seconds: How long running sessions may continue when the server stops.
        allow_origins: Origins of web pages that may connect, such as ``"https://example.com"``;
            ``"*"`` for all. The server's own origin is always allowed; without keys only if it is
            an IP address or localhost. Requests without an origin do not come from a browser and
            are allowed.
        max_unsent_frames: Frames that may wait for a client that does not read them; the session
            ends if there are more.
        max_speed: How many times faster than real time a client may send audio; 0 for no limit.
            4 s and ``resume_seconds`` of audio may arrive at once.

    Raises:
        ConfigError: A value is not valid.

    Example::

        config = ServerConfig(idle_seconds=30, allow_origins=("https://example.com",))
    """

    max_connections: int = 1024
    address_rate: float = 50.0
    max_prompt_chars: int = 4000
    idle_seconds: float = 60.0
    max_session_seconds: float = 0.0
    resume_seconds: float = 10.0
    hello_seconds: float = 10.0
    drain_seconds: float = 30.0
    allow_origins: tuple[str, ...] = ()
    max_unsent_frames: int = 50
    max_speed: float = 2.0

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
        if self.resume_seconds > _MAX_RESUME_SECONDS:
            raise ConfigError(
                f"resume_seconds may be {_MAX_RESUME_SECONDS:g} at most, "
                f"not {self.resume_seconds:g}"
            )
        for name in ("max_speed", "address_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{name} must be a number, not {value!r}")
            if not (value == 0 or (math.isfinite(value) and value >= 1)):
                raise ConfigError(f"{name} must be 0 or at least 1, not {value!r}")
        origins = tuple(map(_allowed_origin, self.allow_origins))
        object.__setattr__(self, "allow_origins", origins)

    def _check_seconds(self, name: str, *, zero: bool) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} must be a number, not {value!r}")
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
            least = "of at least 0" if zero else "above 0"
            raise ConfigError(f"{name} must be seconds {least}, not {value!r}")


def _allowed_origin(origin: str) -> str:
    """Return an allowed origin as browsers send it."""
    if origin == ANY_ORIGIN:
        return origin
    try:
        if _ORIGIN.fullmatch(origin):
            return origin_of(urlsplit(origin))
    except ValueError:  # a port above 65535
        pass
    raise ConfigError(
        f"an allowed origin is * or like https://example.com (small letters, a port if it is not "
        f"the scheme's own, no path), not {origin!r}"
    )
