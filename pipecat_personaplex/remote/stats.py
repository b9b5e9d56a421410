"""Figures of a remote engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipecat_personaplex.interface import SessionStats


@dataclass(frozen=True, slots=True)
class ServerStats:
    """A server as its client sees it.

    Attributes:
        url: Where it is.
        reachable: Whether it answered when last asked.
        draining: Whether it is stopping.
        sessions: Sessions it has, other clients' included; for ``/api/chat``, this client's.
        max_sessions: Its slots; 0 where it does not say.
        reason: Why it cannot be reached; empty if it can.
    """

    url: str
    reachable: bool
    draining: bool
    sessions: int
    max_sessions: int
    reason: str


@dataclass(frozen=True, slots=True)
class RemoteStats:
    """What a remote engine has done since it was made, and how its servers are.

    Attributes:
        healthy: Whether a server can be reached.
        sessions: This engine's open sessions.
        frames: Frames answered, all sessions together.
        late_frames: Of these, heard here more than 80 ms after their last sample was pushed.
        dropped_frames: Input frames dropped because too many waited, here or at a server.
        queued_frames: Input frames that wait here to be sent.
        refused: Sessions that no server took.
        servers: Each server, in the order of their URLs.
    """

    healthy: bool
    sessions: int
    frames: int
    late_frames: int
    dropped_frames: int
    queued_frames: int
    refused: int
    servers: tuple[ServerStats, ...]


def total(counters: Iterable[SessionStats]) -> SessionStats:
    """Counters of several sessions as one."""
    counters = list(counters)
    return SessionStats(
        frames=sum(c.frames for c in counters),
        late_frames=sum(c.late_frames for c in counters),
        dropped_frames=sum(c.dropped_frames for c in counters),
        queued_frames=sum(c.queued_frames for c in counters),
    )
