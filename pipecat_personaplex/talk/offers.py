"""Bounds WebRTC offers before aiortc reads them, in a time that grows with their lines squared."""

from __future__ import annotations

from pipecat_personaplex.errors import BadMessage

MAX_CANDIDATES = 64
"""Addresses of a client; a browser has one for each network interface and server, a dozen."""
MAX_OFFER_LINES = 600
"""A browser that offers audio, camera and screen sends 350 lines."""
_MAX_SECTIONS = 8


def check_offer(sdp: str) -> None:
    """Refuse an offer that no browser sends.

    Args:
        sdp: The offer.

    Raises:
        BadMessage: It has too many lines, media sections or candidates.
    """
    lines = sdp.splitlines()
    for what, count, most in (
        ("lines", len(lines), MAX_OFFER_LINES),
        ("media sections", sum(line.startswith("m=") for line in lines), _MAX_SECTIONS),
        ("candidates", sum(line.startswith("a=candidate") for line in lines), MAX_CANDIDATES),
    ):
        if count > most:
            raise BadMessage(f"the offer has {count} {what}; {most} at most")
