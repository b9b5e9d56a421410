"""Origins of web pages as text; imports no server, so that a command's help is quick."""

from __future__ import annotations

from urllib.parse import SplitResult

ANY_ORIGIN = "*"
"""Allows the pages of every site."""

_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: SplitResult) -> str:
    """The origin of an address, as browsers send it: in small letters, without a default port.

    Args:
        url: An address with a scheme and a host.

    Raises:
        ValueError: Its port is not valid.
    """
    host = (url.hostname or "").lower()
    if ":" in host:
        host = f"[{host}]"
    port = "" if url.port in (None, _DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    return f"{url.scheme}://{host}{port}"
