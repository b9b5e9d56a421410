"""The server on Ray Serve: one engine in each replica, as many replicas as the load needs.

    serve run docker/ray/serve.yaml

Ray places the replicas, sends each new connection to a replica with a free slot, adds replicas
before all slots are in use, removes idle replicas and replaces failed ones. Each replica runs the
same application as ``personaplex serve``; ``docker/README.md`` lists the differences.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.metrics import Gauge
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig
from pipecat_personaplex.errors import EngineFailed
from pipecat_personaplex.logs import LogLevel, configure_logging
from pipecat_personaplex.process import frozen_objects
from pipecat_personaplex.protocol.session_messages import SESSION_PATH, Hello
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.app import create_app
from pipecat_personaplex.server.auth import ApiKeys
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.state import ServerState

_TARGET_LOAD = 0.7
"""Share of slots in use above which Ray adds a replica, because loading one takes time."""
_HEALTH_SECONDS = 5.0
_METRICS = ("sessions", "max_sessions", "queued_frames", "frames", "late_frames", "step_p99_ms")
"""Fields of ``EngineStats`` that Ray exports as ``ray_personaplex_...``, labelled by replica."""


class RayArgs(BaseModel):
    """The ``args`` of a Serve config file.

    Attributes:
        model: A folder that exists on every node, or a Hugging Face repo id.
        engine: Fields of ``EngineConfig``. ``max_sessions`` is the number of slots of a replica,
            by default ``DEFAULT_MAX_SESSIONS``.
        limits: Fields of ``ServerConfig``. Sessions cannot be resumed; ``drain_seconds`` is set
            below instead. There is no ``address_rate``: Ray's proxies accept the connections.
        api_key_file: As ``personaplex serve --api-key-file``, on every node; None for no keys.
        min_replicas: Minimum number of engines.
        max_replicas: Maximum number of engines; equal to ``min_replicas`` for no autoscaling.
        max_waiting: Callers that may wait at each proxy while all slots are in use; further
            callers are refused. -1 for no limit.
        gpus: GPUs of a replica; a fraction shares a card.
        cpus: CPU cores of a replica.
        drain_seconds: How long running sessions may continue when their replica is stopped.
        log_level: As ``personaplex serve --log-level``.
        log_json: As ``personaplex serve --log-json``.

    Raises:
        ValidationError: A field is unknown or its value is not valid.

    Example::

        RayArgs(model="nvidia/personaplex-7b-v1", engine={"max_sessions": 8}, max_replicas=4)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    engine: EngineConfig = Field(
        default_factory=lambda: EngineConfig(max_sessions=DEFAULT_MAX_SESSIONS)
    )
    limits: ServerConfig = Field(default_factory=lambda: ServerConfig(resume_seconds=0.0))
    api_key_file: str | None = None
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    max_waiting: int = Field(default=-1, ge=-1)
    gpus: float = Field(default=1.0, ge=0)
    cpus: float = Field(default=2.0, gt=0)
    drain_seconds: float = Field(default=300.0, ge=0)
    log_level: LogLevel = "INFO"
    log_json: bool = False

    @field_validator("engine", mode="before")
    @classmethod
    def _engine(cls, options: dict[str, Any]) -> EngineConfig:
        # Pydantic ignores unknown fields of a dataclass; a misspelt option must be an error.
        return _build_config(EngineConfig, options, max_sessions=DEFAULT_MAX_SESSIONS)

    @field_validator("limits", mode="before")
    @classmethod
    def _limits(cls, options: dict[str, Any]) -> ServerConfig:
        if "drain_seconds" in (options or ()):
            raise ValueError("limits.drain_seconds does nothing here: set drain_seconds itself")
        if "address_rate" in (options or ()):
            raise ValueError("limits.address_rate does nothing here: Ray's proxies accept")
        return _build_config(ServerConfig, options, resume_seconds=0.0)

    @field_validator("log_level", mode="before")
    @classmethod
    def _log_level(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level

    @model_validator(mode="after")
    def _check(self) -> RayArgs:
        if not self.engine.max_sessions:
            raise ValueError(
                "engine.max_sessions must be at least 1: Ray must know the number of slots"
            )
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be less than min_replicas")
        if self.max_waiting == 0:
            raise ValueError("max_waiting must be -1 or at least 1: Ray does not support 0")
        if self.limits.resume_seconds:
            # Ray sends the next connection to any replica with a free slot, and counts the slot
            # of a session without a connection as free.
            raise ValueError("limits.resume_seconds must be 0: a session cannot be resumed here")
        return self


_Options = TypeVar("_Options", EngineConfig, ServerConfig)


def _build_config(kind: type[_Options], options: dict[str, Any], **defaults: Any) -> _Options:
    try:
        return kind(**{**defaults, **options})
    except TypeError as error:  # Pydantic adds the field's name only to a ValueError.
        raise ValueError(str(error)) from None


def build(settings: dict[str, Any]) -> Application:
    """Build the application; the ``import_path`` of a Serve config file.

    Args:
        settings: The file's ``args``, as ``RayArgs``.
    """
    args = RayArgs.model_validate(settings)
    slots = args.engine.max_sessions
    options: dict[str, Any] = {
        # A request is a WebSocket in Ray's terms, from its upgrade to its end.
        "max_ongoing_requests": slots,
        "max_queued_requests": args.max_waiting,
        "ray_actor_options": {"num_gpus": args.gpus, "num_cpus": args.cpus},
        "graceful_shutdown_timeout_s": args.drain_seconds,
        "graceful_shutdown_wait_loop_s": 1.0,
        "health_check_period_s": _HEALTH_SECONDS,
        "health_check_timeout_s": 2 * _HEALTH_SECONDS,
    }
    if args.min_replicas == args.max_replicas:
        options["num_replicas"] = args.min_replicas
    else:
        options["autoscaling_config"] = {
            "min_replicas": args.min_replicas,
            "max_replicas": args.max_replicas,
            "target_ongoing_requests": max(1.0, _TARGET_LOAD * slots),
            # Add replicas quickly, because callers wait; remove them slowly, because loading takes
            # time.
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 600.0,
        }
    return serve.deployment(name="engine", **options)(serve.ingress()(EngineReplica)).bind(args)


class EngineReplica:
    """One engine and its application; Ray creates it and calls its methods.

    Args:
        args: The ``args`` of the config file.
    """

    def __init__(self, args: RayArgs):
        # Import here: Ray reads the config file on nodes without a GPU, which may lack torch.
        from pipecat_personaplex import Engine

        # Ray collects standard error. Loguru's own output would lack the session, and show the
        # values of variables in tracebacks.
        configure_logging(args.log_level, as_json=args.log_json)
        self._engine = Engine.load(args.model, args.engine)
        self._resources = ExitStack()
        self._resources.callback(self._engine.stop)
        self._engine.start()
        keys = None if args.api_key_file is None else ApiKeys.read(args.api_key_file)
        self._state = ServerState(
            args.limits, Path(args.model).name, AdmissionController(args.limits, keys), self._engine
        )
        self._gauges = {name: Gauge(f"personaplex_{name}") for name in _METRICS}
        self._resources.enter_context(frozen_objects())

    def __serve_build_asgi_app__(self) -> Starlette:
        app = create_app(self._state)
        app.add_middleware(HideSlotCounts)
        return app

    async def check_health(self) -> None:
        """Update the exported metrics; Ray replaces the replica if this raises.

        Raises:
            EngineFailed: The engine has failed.
        """
        if not self._engine.healthy:
            raise EngineFailed("the engine has failed; its replica must be replaced")
        # A request for /metrics reaches only one replica; these gauges are exported by each.
        stats = self._engine.stats()
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stats, name))

    def __del__(self) -> None:
        # Ray calls it when all connections have ended or their drain time is over. There are no
        # resources if the model could not be loaded.
        if hasattr(self, "_resources"):
            self._resources.close()


class HideSlotCounts:
    """Sets the slot counts in a replica's hello to 0, because it is one of many replicas.

    A client that sees the slots of one replica would take the whole address for full when it has
    used as many.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; change only the first message of ``/v1/session``."""
        hello_sent = False

        async def hide_counts(message: Message) -> None:
            nonlocal hello_sent
            if message["type"] == "websocket.send" and not hello_sent:
                hello_sent = True
                hello = Hello.model_validate_json(message["text"])
                hello = hello.model_copy(update={"sessions": 0, "max_sessions": 0})
                message = {**message, "text": hello.model_dump_json()}
            await send(message)

        has_hello = scope["type"] == "websocket" and scope["path"] == SESSION_PATH
        await self._app(scope, receive, hide_counts if has_hello else send)


def proxy_middlewares() -> list[Middleware]:
    """Return the middleware with which Ray's proxies refuse a WebSocket correctly.

    Set ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` to this function where Ray is started.
    """
    return [Middleware(WebSocketRefusals)]


class WebSocketRefusals:
    """Turns the HTTP response with which Ray's proxy refuses a WebSocket into an ASGI denial.

    The proxy sends ``http.response`` messages on a WebSocket, which ASGI does not allow; the client
    would get status 500 instead of 503.

    Args:
        app: The proxy's application.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; rename the messages of a refused WebSocket."""

        async def rename(message: Message) -> None:
            if message["type"].startswith("http.response."):
                message = {**message, "type": f"websocket.{message['type']}"}
            await send(message)

        await self._app(scope, receive, rename if scope["type"] == "websocket" else send)
