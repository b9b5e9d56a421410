"""The address of a server: its URL, protocol, API key and TLS settings."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit, urlunsplit

from pipecat_personaplex.config import checked_text
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.protocol.session_messages import SESSION_PATH

# http:// URLs are accepted because operators copy them from a browser.
_WEBSOCKET_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


@dataclass(frozen=True)
class ServerAddress:
    """How to reach one server.

    Attributes:
        url: A ``ws://`` or ``wss://`` URL with its path.
        moshi: Whether the server speaks NVIDIA's protocol (``/api/chat``) instead of
            ``/v1/session``.
        api_key: Sent as a bearer token; None for no key.
        ssl_context: Verifies the server's certificate; None for ``ws://``.
    """

    url: str
    moshi: bool
    api_key: str | None = field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def parse(
        cls, url: str, api_key: str | None, ssl_context: ssl.SSLContext | None
    ) -> ServerAddress:
        """Parse a URL; its path selects the protocol.

        A URL whose path ends in neither ``/api/chat`` nor ``/v1/session`` gets ``/v1/session``
        appended.

        Args:
            url: As above.
            api_key: Sent as a bearer token; None for no key.
            ssl_context: For ``wss://``; None for the default certificate verification.

        Raises:
            ConfigError: The URL or the API key is not valid.
        """
        parts = _split_url(url)
        if parts.username is not None or parts.query or parts.fragment:
            raise ConfigError(
                f"the URL of the engine at {parts.hostname} may only have a host, a port and a "
                "path; pass the key as api_key"
            )
        path = parts.path.rstrip("/")
        if not path.endswith((MOSHI_PATH, SESSION_PATH)):
            path += SESSION_PATH
        scheme = _WEBSOCKET_SCHEMES[parts.scheme]
        return cls(
            url=urlunsplit((scheme, parts.netloc, path, "", "")),
            moshi=path.endswith(MOSHI_PATH),
            api_key=_validated_key(api_key),
            # Made once: reading the certificates takes 20 ms, in which all calls would wait.
            ssl_context=(ssl_context or ssl.create_default_context()) if scheme == "wss" else None,
        )

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host name and port; the scheme's default port if the URL has none."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (443 if self.secure else 80)

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return self.url.startswith("wss:")


def _split_url(url: str) -> SplitResult:
    try:
        parts = urlsplit(checked_text("an engine's URL", url))
        # A connection encodes the host name the same way; some names fail here.
        (parts.hostname or "").encode("idna")
        valid = bool(parts.hostname) and parts.scheme in _WEBSOCKET_SCHEMES and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"an engine's URL is like wss://host:8998{_rejected_url(url)}")
    return parts


def _rejected_url(url: str) -> str:
    """The part of the error message about the invalid URL, without any key that it may contain."""
    if "@" in url:
        return "; pass the key as api_key"
    shown = url.partition("?")[0].partition("#")[0]
    hint = "" if "://" in shown or not shown else f"; did you mean ws://{shown}?"
    return f", not {shown!r}{hint}"


def _validated_key(api_key: str | None) -> str | None:
    # The message must not repeat the key: it may be written to a log.
    key = (api_key or "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError("the API key may only have printable ASCII characters and no spaces")
    return key or None
