"""Where a server is."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.protocol.session_messages import SESSION_PATH

_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


@dataclass(frozen=True)
class Address:
    """A server, and how to reach it.

    Attributes:
        url: A ``ws://`` or ``wss://`` URL, its path included.
        chat: Whether it speaks NVIDIA's protocol.
        api_key: Sent as a bearer token.
        ssl_context: For ``wss://``; None verifies as is usual.
    """

    url: str
    chat: bool
    api_key: str | None = field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str | None, ssl_context: ssl.SSLContext | None) -> Address:
        """The server that a URL names; its path picks the protocol.

        Raises:
            ConfigError: It cannot be one, or the key is none.
        """
        parts = _parts(url)
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                f"the URL of the engine at {parts.hostname} has more than a path; a key is given "
                "as api_key"
            )
        path = parts.path.rstrip("/")
        if not path.endswith((MOSHI_PATH, SESSION_PATH)):
            path += SESSION_PATH
        scheme = _SCHEMES[parts.scheme]
        return cls(
            urlunsplit((scheme, parts.netloc, path, "", "")),
            path.endswith(MOSHI_PATH),
            _checked_key(api_key),
            ssl_context if scheme == "wss" else None,
        )

    @property
    def host(self) -> tuple[str, int]:
        """Name and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if self.secure else 80)

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return self.url.startswith("wss:")


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as a connection would: not every name can be one
        usable = bool(parts.hostname) and parts.scheme in _SCHEMES and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"an engine's URL is like wss://host:8998{_instead_of(url)}")
    return parts


def _instead_of(url: str) -> str:
    """What to say of a URL that is none, without any key that may be in it."""
    if "@" in url:
        return "; a key is given as api_key"
    shown = url.partition("?")[0].partition("#")[0]
    hint = "" if "://" in shown or not shown else f"; did you mean ws://{shown}?"
    return f", not {shown!r}{hint}"


def _checked_key(api_key: str | None) -> str | None:
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("the API key has characters that no key has")
    return key or None
