"""Choose the server for a session, and one error when no server takes it."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence

from pipecat_personaplex.errors import (
    ConfigError,
    EngineDraining,
    EngineFull,
    EngineUnreachable,
    LimitReached,
    PersonaPlexError,
    VoiceNotFound,
)
from pipecat_personaplex.interface import Feature
from pipecat_personaplex.remote.server import Server

NO_FEATURES: frozenset[Feature] = frozenset()


def require_available(
    servers: Iterable[Server], voice: str, features: frozenset[Feature] = NO_FEATURES
) -> None:
    """Refuse a session that certainly no server takes.

    Args:
        servers: The servers to choose from.
        voice: The voice that the session needs.
        features: What the session's server must be able to do.

    Raises:
        EngineUnreachable: No server is reachable.
        VoiceNotFound: No reachable server has the voice.
        ConfigError: No reachable server with the voice has the features.
        EngineDraining: Every reachable server with the voice is stopping.
        EngineFull: Every reachable server with the voice that is not stopping is full.
    """
    servers = list(servers)
    reachable = [server for server in servers if server.reachable]
    if not reachable:
        raise EngineUnreachable(unreachable_reason(servers))
    with_voice = [server for server in reachable if server.has_voice(voice)]
    if not with_voice:
        raise VoiceNotFound(voice, known=all_voices(reachable))
    able = [server for server in with_voice if features <= server.features]
    if not able:
        raise ConfigError(f"no reachable server supports {', '.join(sorted(features))}")
    staying = [server for server in able if not server.draining]
    if not staying:
        raise EngineDraining("every reachable server is stopping")
    if all(server.full for server in staying):
        raise EngineFull(sum(server.max_sessions for server in staying))


def least_loaded(
    servers: Iterable[Server],
    voice: str,
    tried: Collection[Server] = (),
    features: frozenset[Feature] = NO_FEATURES,
) -> Server | None:
    """The server for the next session; None if no suitable server is left.

    Args:
        servers: The servers to choose from.
        voice: The voice that the session needs.
        tried: Servers to leave out.
        features: What the session's server must be able to do.

    Servers with the same load are chosen at random, so that many clients do not pick the same one.
    """
    suitable = [
        server
        for server in servers
        if server.reachable
        and server.has_voice(voice)
        and features <= server.features
        and not server.draining
        and server not in tried
    ]
    return min(suitable, key=lambda server: (server.load, random.random()), default=None)


def combine_refusals(refusals: Sequence[PersonaPlexError]) -> PersonaPlexError:
    """The one error for a session that several servers refused: the most useful to the caller."""
    full = [error for error in refusals if isinstance(error, EngineFull)]
    if full:
        return EngineFull(sum(error.max_sessions for error in full))
    for kind in (EngineDraining, LimitReached, VoiceNotFound, PersonaPlexError):
        for error in refusals:
            if isinstance(error, kind) and not isinstance(error, EngineUnreachable):
                return error
    return EngineUnreachable("; ".join(str(error) for error in refusals))


def all_voices(servers: Iterable[Server]) -> list[str]:
    """The voices of all these servers, sorted."""
    return sorted({voice for server in servers for voice in server.voices})


def unreachable_reason(servers: Iterable[Server]) -> str:
    """Why no server is reachable."""
    reasons = "; ".join(str(server.error) for server in servers if server.error)
    return f"no server of the engine is reachable: {reasons}"
