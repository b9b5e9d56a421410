"""Metrics of a remote engine and its servers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipecat_personaplex.interface import SessionStats


@dataclass(frozen=True, slots=True)
class ServerStats:
    """The latest known state of one server.

    Attributes:
        url: The server's URL.
        reachable: Whether the latest poll or connection succeeded.
        draining: Whether the server is stopping and takes no new sessions.
        sessions: Open sessions, other clients' included; for a server of NVIDIA's protocol, only
            this client's.
        max_sessions: The server's slots; 0 if it does not report them.
        reason: Why the server is not reachable; empty if it is.
    """

    url: str
    reachable: bool
    draining: bool
    sessions: int
    max_sessions: int
    reason: str


@dataclass(frozen=True, slots=True)
class RemoteStats:
    """Counters of a remote engine since it was created, and the state of its servers.

    Attributes:
        healthy: Whether at least one server is reachable.
        sessions: Open sessions of this engine.
        frames: Output frames received, summed over all sessions.
        late_frames: Output frames received more than 80 ms after the last sample of their input
            frame was pushed.
        dropped_frames: Input frames dropped here or by a server because a queue was full.
        queued_frames: Input frames that wait here to be sent.
        refused: Sessions that no server accepted.
        servers: One entry for each server, in the order of the URLs.
        slow_callbacks: Callbacks that took longer than 80 ms, and so delayed every caller.
        stuck_callbacks: Callbacks that did not return in five seconds; their sessions ended.
    """

    healthy: bool
    sessions: int
    frames: int
    late_frames: int
    dropped_frames: int
    queued_frames: int
    refused: int
    servers: tuple[ServerStats, ...]
    slow_callbacks: int = 0
    stuck_callbacks: int = 0


def sum_stats(stats: Iterable[SessionStats]) -> SessionStats:
    """Add up the counters of several sessions."""
    stats = list(stats)
    return SessionStats(
        frames=sum(each.frames for each in stats),
        late_frames=sum(each.late_frames for each in stats),
        dropped_frames=sum(each.dropped_frames for each in stats),
        queued_frames=sum(each.queued_frames for each in stats),
    )
