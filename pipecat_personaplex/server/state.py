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
from pipecat_personaplex.server.refusals import RefusalLog


class ServedEngine(EngineLike, Protocol):
    """What a server needs of an engine in addition to its sessions; ``Engine`` is one."""

    @property
    def healthy(self) -> bool:
        """False once the device or the model thread has failed."""

    def stats(self) -> EngineStats:
        """Counters for health checks and metrics."""


@dataclass
class ServerState:
    """A server: its limits, its admission controller and its engine.

    ``app`` checks every WebSocket before it reaches an endpoint: the engine is loaded, the key is
    valid, the page's origin is allowed, and the connection is counted. ``websocket.state.client``
    is then the ``ApiClient``. Endpoints open sessions with ``open_admitted_session``, which
    requests the permit that notifies the session when the server stops.

    Attributes:
        config: The server's limits.
        model: The model's name, which clients receive in hello.
        admission: Who may connect and have sessions.
        loaded: The engine; None while it is loading.
        metrics: The server's metrics.
        refusals: Logs refused clients, sessions and messages.

    Example::

        config = ServerConfig(max_connections=100)
        state = ServerState(config, "personaplex-7b-v1", AdmissionController(config))
        app = create_app(state)
        engine = Engine.load("nvidia/personaplex-7b-v1")
        engine.start()
        state.loaded = engine
    """

    config: ServerConfig
    model: str
    admission: AdmissionController
    loaded: ServedEngine | None = None
    metrics: Metrics = field(init=False)
    refusals: RefusalLog = field(init=False, default_factory=RefusalLog)

    def __post_init__(self) -> None:
        self.metrics = Metrics(
            lambda: None if self.loaded is None else self.loaded.stats(), self.admission
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

    def count_invalid_message(self, error: PersonaPlexError | None) -> None:
        """Count a client's message if the error says that the message was invalid."""
        if isinstance(error, BadMessage | ConfigError | InvalidAudio):
            self.metrics.messages_refused.inc()
