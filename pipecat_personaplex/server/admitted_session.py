"""A session with its permit, its limits and its log.

Every session ends through ``AsyncSession.end``, whether the engine, a limit, the drain deadline, an
endpoint or the registry ends it. ``end`` closes the engine's session and calls the callbacks that
``open_admitted_session`` added: they stop the timers, release the permit and log the end. An
endpoint that opened a session must call ``end``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loguru import logger

from pipecat_personaplex.async_session import AsyncSession, Draining, Ended
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import ConfigError, EngineDraining
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.server.auth import ApiClient
from pipecat_personaplex.server.limits import Limits, check_length
from pipecat_personaplex.server.refusals import describe_error
from pipecat_personaplex.server.state import ServerState

if TYPE_CHECKING:
    from loguru import Logger


@dataclass(frozen=True)
class AdmittedSession:
    """An open session of a client.

    Attributes:
        session: The engine's session as events.
        limits: Its limits, which run from now on.
        log: Writes lines with the session's public id and its client.
    """

    session: AsyncSession
    limits: Limits
    log: Logger


def open_admitted_session(
    state: ServerState,
    client: ApiClient,
    path: str,
    persona: Persona,
    sampling: SamplingParams,
    history: CallHistory | None = None,
) -> AdmittedSession:
    """Request a permit for a client and open a session.

    Args:
        state: The server.
        client: Who opens the session.
        path: Path of the endpoint, for metrics and log.
        persona: Voice and role.
        sampling: How tokens are sampled.
        history: A call to continue.

    Raises:
        LimitReached: The prompt is too long, or the client has no session left.
        EngineDraining: The server is stopping.
        ConfigError: The engine cannot continue a call.
        PersonaPlexError: As ``Engine.open_session``.
    """
    check_length("a text prompt", persona.text_prompt, state.config)
    if history is not None and "history" not in state.engine.features:
        raise ConfigError("this server cannot continue a call that began at another server")
    session = AsyncSession(state.config.max_unsent_frames)
    permit = state.admission.admit(
        client,
        on_drain=lambda seconds: session.put(Draining(seconds)),
        on_deadline=lambda: session.end(EngineDraining("the server has stopped")),
    )
    try:
        session.open(state.engine, persona, sampling, history)
    except BaseException:
        permit.release()
        raise
    limits = Limits(state.config, session)
    log = logger.bind(session=session.id, client=client.label)
    opened_at = asyncio.get_running_loop().time()

    def close(ended: Ended) -> None:
        limits.stop()
        permit.release()
        seconds = asyncio.get_running_loop().time() - opened_at
        reason = ended.reason if ended.error is None else describe_error(ended.error)
        log.log(
            "INFO" if ended.error is None else "WARNING",
            *("session of {} ended after {:.1f} s: {}", client.label, seconds, reason),
        )

    session.add_end_callback(close)
    state.metrics.sessions_opened.labels(path).inc()
    log.info("session of {} opened at {}; {} now", client.label, path, state.admission.sessions)
    return AdmittedSession(session, limits, log)
