"""The server on Ray Serve: one engine a replica, replicas as they are needed.

    serve run docker/ray/serve.yaml

Ray places the replicas, sends each new connection to one with a free slot, adds replicas before the
slots run out, takes them away when they are empty, and replaces those that fail. The rest is the
same application that ``personaplex serve`` runs. ``docker/README.md`` says what differs.
"""

from __future__ import annotations

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
from pipecat_personaplex.protocol.session_messages import SESSION_PATH, Hello
from pipecat_personaplex.server.admission import AdmissionController
from pipecat_personaplex.server.app import create_app
from pipecat_personaplex.server.auth import ApiKeys
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.state import ServerState

_TARGET_LOAD = 0.7
"""Share of the slots in use past which there should be another replica: it takes time to load."""
_HEALTH_SECONDS = 5.0
_FIGURES = ("sessions", "max_sessions", "queued_frames", "frames", "late_frames", "step_p99_ms")
"""Of ``EngineStats``; Ray exports them as ``ray_personaplex_...``, with the replica as a label."""


class RayArgs(BaseModel):
    """What the ``args`` of a Serve config file may say.

    Attributes:
        model: A folder that every node has, or a Hugging Face repo id.
        engine: As ``EngineConfig``; its ``max_sessions`` are the slots of one replica,
            ``DEFAULT_MAX_SESSIONS`` where it is left out.
        limits: As ``ServerConfig``, except that sessions cannot be resumed, and that
            ``drain_seconds`` has its place below.
        api_key_file: As ``personaplex serve --api-key-file``, on every node; None for no keys.
        min_replicas: Engines at least.
        max_replicas: Engines at most; as many as at least, for no autoscaling.
        max_waiting: Callers that may wait for a slot, at each proxy, while all are taken; one more
            is refused. -1 for no limit.
        gpus: Of a replica; a part of one shares a card.
        cpus: Of a replica.
        drain_seconds: How long running sessions may go on once their replica is to stop.
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

    @field_validator("engine", mode="before")
    @classmethod
    def _engine(cls, options: dict[str, Any]) -> EngineConfig:
        # Pydantic would ignore what a dataclass does not know; a misspelt option must be an error.
        return _made(EngineConfig, options, max_sessions=DEFAULT_MAX_SESSIONS)

    @field_validator("limits", mode="before")
    @classmethod
    def _limits(cls, options: dict[str, Any]) -> ServerConfig:
        if "drain_seconds" in (options or ()):
            raise ValueError("limits.drain_seconds does nothing here: set drain_seconds itself")
        return _made(ServerConfig, options, resume_seconds=0.0)

    @model_validator(mode="after")
    def _check(self) -> RayArgs:
        if not self.engine.max_sessions:
            raise ValueError(
                "engine.max_sessions must be at least 1: Ray has no place for what fits"
            )
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be less than min_replicas")
        if self.max_waiting == 0:
            raise ValueError("max_waiting must be -1 or at least 1: Ray knows no queue of none")
        if self.limits.resume_seconds:
            # The next connection goes to whichever replica has room, and a session that waits for
            # it would hold a slot that Ray takes for a free one.
            raise ValueError("limits.resume_seconds must be 0: a session cannot be resumed here")
        return self


_Options = TypeVar("_Options", EngineConfig, ServerConfig)


def _made(kind: type[_Options], options: dict[str, Any], **defaults: Any) -> _Options:
    try:
        return kind(**{**defaults, **options})
    except TypeError as error:  # which Pydantic would not give the place of
        raise ValueError(str(error)) from None


def build(settings: dict[str, Any]) -> Application:
    """The application; the ``import_path`` of a Serve config file.

    Args:
        settings: The file's ``args``, as ``RayArgs``.
    """
    args = RayArgs.model_validate(settings)
    slots = args.engine.max_sessions
    options: dict[str, Any] = {
        # What Ray calls a request is a WebSocket, from its upgrade to its end.
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
            # Up at once, since callers wait; down slowly, since loading is what takes the time.
            "upscale_delay_s": 5.0,
            "downscale_delay_s": 600.0,
        }
    return serve.deployment(name="engine", **options)(serve.ingress()(EngineReplica)).bind(args)


class EngineReplica:
    """One engine, and the application around it; Ray calls all of its methods.

    Args:
        args: Of the config file.
    """

    def __init__(self, args: RayArgs):
        # Here, since Ray reads the config file on nodes without a card, which may lack torch.
        from pipecat_personaplex import Engine

        self._engine = Engine.load(args.model, args.engine)
        self._engine.start()
        keys = None if args.api_key_file is None else ApiKeys.read(args.api_key_file)
        self._state = ServerState(
            args.limits, Path(args.model).name, AdmissionController(args.limits, keys), self._engine
        )
        self._gauges = {name: Gauge(f"personaplex_{name}") for name in _FIGURES}

    def __serve_build_asgi_app__(self) -> Starlette:
        app = create_app(self._state)
        app.add_middleware(OneOfMany)
        return app

    async def check_health(self) -> None:
        """Have Ray replace the replica once its engine has failed, and else know how it is.

        Raises:
            EngineFailed: It has.
        """
        if not self._engine.healthy:
            raise EngineFailed("the engine has failed; its replica must be replaced")
        # /metrics is answered by whichever replica is asked; these come from each.
        stats = self._engine.stats()
        for name, gauge in self._gauges.items():
            gauge.set(getattr(stats, name))

    def __del__(self) -> None:
        # The connections are over by now, or their time is. A replica that never came up has none.
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()


class OneOfMany:
    """Has a replica say nothing of slots in its hello, since it would speak for all of them.

    A client that is told of one replica's slots thinks the address full once it has taken them.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and the hello without its figures."""
        greeted = False

        async def discreet(message: Message) -> None:
            nonlocal greeted
            if message["type"] == "websocket.send" and not greeted:
                greeted = True
                hello = Hello.model_validate_json(message["text"])
                hello = hello.model_copy(update={"sessions": 0, "max_sessions": 0})
                message = {**message, "text": hello.model_dump_json()}
            await send(message)

        greets = scope["type"] == "websocket" and scope["path"] == SESSION_PATH
        await self._app(scope, receive, discreet if greets else send)


def proxy_middlewares() -> list[Middleware]:
    """What Ray's proxies need to refuse a WebSocket politely.

    For ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``, where Ray is started.
    """
    return [Middleware(PoliteRefusals)]


class PoliteRefusals:
    """Let a refused WebSocket see the status that it was refused with.

    Ray's proxy refuses a WebSocket as if it were a plain request, which the protocol does not
    allow; its client would see 500 for what was meant as 503.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its refusal back."""

        async def translated(message: Message) -> None:
            if message["type"].startswith("http.response."):
                message = {**message, "type": f"websocket.{message['type']}"}
            await send(message)

        await self._app(scope, receive, translated if scope["type"] == "websocket" else send)
