"""Which of several servers takes a session."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from pipecat_personaplex.errors import (
    EngineDraining,
    EngineFull,
    EngineUnreachable,
    LimitReached,
    PersonaPlexError,
    VoiceNotFound,
)
from pipecat_personaplex.remote.server import Server


def require_room(servers: Iterable[Server], voice: str) -> None:
    """Refuse a session that certainly no server takes.

    Raises:
        EngineUnreachable: None can be reached.
        VoiceNotFound: None of those that can has the voice.
        EngineDraining: Each one that has it is stopping.
        EngineFull: Each one that has it and is not stopping is full.
    """
    servers = list(servers)
    reachable = [server for server in servers if server.reachable]
    if not reachable:
        raise EngineUnreachable(why_none(servers))
    speaking = [server for server in reachable if server.has_voice(voice)]
    if not speaking:
        raise VoiceNotFound(voice, known=all_voices(reachable))
    staying = [server for server in speaking if not server.draining]
    if not staying:
        raise EngineDraining("every server that can be reached is stopping")
    if all(server.full for server in staying):
        raise EngineFull(sum(server.max_sessions for server in staying))


def least_loaded(
    servers: Iterable[Server], voice: str, tried: Sequence[Server] = ()
) -> Server | None:
    """Where the next session goes; None if every server has been tried or is of no use."""
    useful = [
        server
        for server in servers
        if server.reachable and server.has_voice(voice) and not server.draining
        if server not in tried
    ]
    return min(useful, key=lambda server: (server.load, random.random()), default=None)


def most_telling(refusals: Sequence[PersonaPlexError]) -> PersonaPlexError:
    """The one error for a session that several servers have refused."""
    full = [error for error in refusals if isinstance(error, EngineFull)]
    if full:
        return EngineFull(sum(error.max_sessions for error in full))
    for kind in (EngineDraining, LimitReached, VoiceNotFound, PersonaPlexError):
        for error in refusals:
            if isinstance(error, kind) and not isinstance(error, EngineUnreachable):
                return error
    return EngineUnreachable("; ".join(str(error) for error in refusals))


def all_voices(servers: Iterable[Server]) -> list[str]:
    """Every voice of these servers."""
    return sorted({voice for server in servers for voice in server.voices})


def why_none(servers: Iterable[Server]) -> str:
    """Why no server can be reached."""
    reasons = "; ".join(str(server.error) for server in servers if server.error)
    return f"no engine's server can be reached: {reasons}"
