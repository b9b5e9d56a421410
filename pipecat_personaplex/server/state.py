"""What the endpoints of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from pipecat_personaplex.errors import (
    BadMessage,
    ConfigError,
    EngineStopped,
    InvalidAudio,
    PersonaPlexError,
)
from pipecat_personaplex.interface import EngineLike, EngineStats
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.metrics import Metrics


class ServedEngine(EngineLike, Protocol):
    """What a server asks of an engine beside its sessions; ``Engine`` is one."""

    @property
    def healthy(self) -> bool:
        """False once the device or the model thread has failed."""

    def stats(self) -> EngineStats:
        """Figures for health checks and metrics."""


@dataclass
class ServerState:
    """A server: its engine, its limits, its door.

    No WebSocket reaches an endpoint before the engine is there, without a key where one is
    wanted, or from a page that is not allowed: ``app`` sees to it, and counts the connection. An
    endpoint finds whose it is in ``websocket.state.guest``, asks ``door.admit`` for a ticket for
    each session, and hears through that ticket when the server stops.

    Attributes:
        config: The server's limits.
        model: The model's name, for clients to read.
        door: Who may come in, and who is inside.
        loaded: The engine, once it runs.
        metrics: What is counted.
    """

    config: ServerConfig
    model: str
    door: AdmissionController
    loaded: ServedEngine | None = None
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics(
            lambda: None if self.loaded is None else self.loaded.stats(), self.door
        )

    @property
    def engine(self) -> ServedEngine:
        """The engine.

        Raises:
            EngineStopped: It is still loading.
        """
        if self.loaded is None:
            raise EngineStopped("the model is loading; try again in a minute")
        return self.loaded

    def count_refused(self, error: PersonaPlexError | None) -> None:
        """Count a client's message, if an error says that it could not be used."""
        if isinstance(error, BadMessage | ConfigError | InvalidAudio):
            self.metrics.messages_refused.inc()
