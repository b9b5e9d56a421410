"""Addresses that a user gives."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit


def split_address(text: str, schemes: Collection[str]) -> SplitResult | None:
    """The parts of an address with one of these schemes and a host; None if it is not valid."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port above 65535
        return None
    return parts if valid else None
