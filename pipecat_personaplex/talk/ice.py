"""STUN and TURN servers, as the command line names them."""

from __future__ import annotations

from pipecat.transports.smallwebrtc.connection import IceServer

from pipecat_personaplex.errors import ConfigError

_SCHEMES = ("stun:", "stuns:", "turn:", "turns:")


def parse_ice_server(text: str) -> IceServer:
    """Read ``URL`` or ``URL,USER,PASSWORD``.

    Raises:
        ConfigError: It is neither.

    Example::

        parse_ice_server("turn:turn.example.com:3478,anna,secret")
    """
    url, *account = text.split(",", 2)
    if not url.startswith(_SCHEMES) or len(account) == 1 or not url.partition(":")[2]:
        raise ConfigError(
            f"--ice-server must be stun:HOST:PORT or turn:HOST:PORT,USER,PASSWORD, not {url[:80]!r}"
        )
    if url.startswith("turn") and not account:
        raise ConfigError(
            f"--ice-server {url[:80]}: a TURN server needs a user and a password: "
            "turn:HOST:PORT,USER,PASSWORD"
        )
    username, credential = account or (None, None)
    return IceServer(urls=url, username=username, credential=credential)


def for_browser(server: IceServer) -> dict[str, str]:
    """A server as the browser's RTCPeerConnection takes it."""
    names = ("urls", "username", "credential")
    return {name: value for name in names if (value := getattr(server, name))}
