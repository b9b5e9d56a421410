"""What every bot shares: one engine for all callers, and the life of a call."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from loguru import logger
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.frame_processor import FrameProcessor

# First of all, since it reads a .env file into the environment.
from pipecat.runner import run as runner
from pipecat.runner.types import (
    RunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.runner import WorkerRunner

from bots.busy import Door, one_line
from bots.engines import connect_engine, load_engine
from bots.options import BotParser
from bots.transports import (
    open_transport,
    sample_rate,
    shorten_microphone_buffer,
    transport_of,
)
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig
from pipecat_personaplex.errors import EngineFull, PersonaPlexError, UserError, VoiceNotFound
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings

# "Try again later", of the codes that a WebSocket closes with.
_WS_BUSY = 1013


@dataclass(frozen=True)
class Call:
    """One caller.

    Attributes:
        engine: Shared by every call.
        transport: Where the caller is.
        settings: Of the agent, from the options.
        args: All options, the runner's included.
    """

    engine: EngineLike
    transport: BaseTransport
    settings: PersonaPlexLLMSettings
    args: argparse.Namespace
    _rate: int
    _idle_seconds: float | None
    _running: set[PipelineWorker]

    async def run(self, processors: Sequence[FrameProcessor]) -> None:
        """Run the call's pipeline until the caller hangs up or the agent cannot go on."""
        worker = PipelineWorker(
            Pipeline(list(processors)),
            params=PipelineParams(
                audio_in_sample_rate=self._rate,
                audio_out_sample_rate=self._rate,
                enable_metrics=True,
                enable_usage_metrics=True,
                send_initial_empty_metrics=False,
            ),
            idle_timeout_secs=self._idle_seconds,
            processor_unusable_policy=ProcessorUnusablePolicy.END,
        )

        @self.transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def on_client_disconnected(transport: object, client: object) -> None:
            await worker.cancel()

        if self.args.transport == "daily":
            # Pipecat would go on without a room, and the agent talk to nobody for ever.
            @self.transport.event_handler("on_error")  # type: ignore[untyped-decorator]
            async def on_error(transport: object, error: str) -> None:
                await worker.cancel()

        workers = WorkerRunner(handle_sigint=False)
        await workers.add_workers(worker)
        self._running.add(worker)
        try:
            await workers.run()
        finally:
            self._running.discard(worker)


class BotHost:
    """Starts a bot and answers its callers.

    Args:
        description: Who the bot is, for ``--help``.
        converse: Builds and runs the pipeline of one call.
        voice: The voice unless another is given, where the model has it.
        prompt: The role unless another is given.
        extend: Adds options of the bot's own.
        check: Refuses what these options cannot do, before the model is loaded.
    """

    def __init__(
        self,
        description: str,
        converse: Callable[[Call], Awaitable[None]],
        *,
        voice: str,
        prompt: str,
        extend: Callable[[argparse.ArgumentParser], object] | None = None,
        check: Callable[[argparse.Namespace], object] | None = None,
    ):
        self._description = description
        self._converse = converse
        self._voice = voice
        self._prompt = prompt
        self._extend = extend
        self._check = check
        self._engine: EngineLike | None = None
        self._args = argparse.Namespace()
        self._calls = 0
        self._running: set[PipelineWorker] = set()
        self._ends_calls = False

    def main(self, engine: EngineLike | None = None) -> int:
        """Serve callers until interrupted.

        Args:
            engine: A running one, in place of a model that is loaded.

        Returns:
            The exit code: 2 for what the user can put right.
        """
        with ExitStack() as stack:

            def prepare(args: argparse.Namespace) -> None:
                if self._check is not None:
                    self._check(args)
                self._args = args
                self._engine = engine
                if engine is None:
                    self._engine = stack.enter_context(_engine_for(args))
                self._choose_voice()
                # Else every full collection walks all that was imported, and halts each call for
                # 200 ms.
                gc.collect()
                gc.freeze()

            parser = BotParser(self._description, self._prompt, prepare)
            if self._extend is not None:
                self._extend(parser)
            runner.app.add_middleware(Door, full=lambda: self.full)
            try:
                runner.main(parser)
            except PersonaPlexError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2 if isinstance(error, UserError) else 1
            except Exception as error:
                # What a key that Daily does not know looks like; nobody has been called yet.
                if not self._args.direct or self._ends_calls:
                    raise
                print(f"error: no Daily room: {one_line(error)}", file=sys.stderr)
                return 2
        return 0

    @property
    def full(self) -> bool:
        """Whether there is room for nobody."""
        return self._calls >= self._lines

    @property
    def _lines(self) -> int:
        """Callers at once."""
        assert self._engine is not None, "main() comes first"
        asked: int | None = self._args.max_sessions
        return asked or min(DEFAULT_MAX_SESSIONS, self._engine.max_sessions or DEFAULT_MAX_SESSIONS)

    async def answer(self, runner_args: RunnerArguments) -> None:
        """Take one call, from its connection to its end; what goes wrong ends only this call."""
        self._end_calls_on_signals()
        try:
            with self._line():
                await self._converse(await self._connect(runner_args))
        except (PersonaPlexError, ValueError, OSError) as error:
            # ValueError is how Pipecat says that a connection is not what it was said to be.
            logger.error("a call was not taken: {}", one_line(error))
            await _hang_up(runner_args)

    @contextmanager
    def _line(self) -> Iterator[None]:
        # Two callers may pass the door at once; here only one of them gets the last line.
        if self.full:
            raise EngineFull(self._lines)
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def _connect(self, runner_args: RunnerArguments) -> Call:
        assert self._engine is not None, "main() comes first"
        transport = transport_of(runner_args)
        if transport != self._args.transport:
            raise ValueError(f"this bot serves -t {self._args.transport}, and no other transport")
        if isinstance(runner_args, SmallWebRTCRunnerArguments):
            shorten_microphone_buffer(runner_args.webrtc_connection)
        return Call(
            self._engine,
            await open_transport(runner_args),
            PersonaPlexLLMSettings(voice=self._args.voice, system_instruction=self._args.prompt),
            self._args,
            sample_rate(transport),
            runner_args.pipeline_idle_timeout_secs,
            self._running,
        )

    def _end_calls_on_signals(self) -> None:
        """Have Ctrl-C end running calls too: the server would wait for them for ever."""
        if self._ends_calls:
            return
        self._ends_calls = True
        loop = asyncio.get_running_loop()
        ending: set[asyncio.Task[None]] = set()

        def end_calls() -> None:
            ending.update(loop.create_task(worker.cancel()) for worker in self._running)

        def chain(number: int, server: Callable[[int, FrameType | None], object]) -> None:
            def on_signal(number: int, frame: FrameType | None) -> None:
                loop.call_soon_threadsafe(end_calls)
                server(number, frame)

            signal.signal(number, on_signal)

        # The server has set its own by now, and takes these back when it is done.
        for number in (signal.SIGINT, signal.SIGTERM):
            server = signal.getsignal(number)
            if callable(server):
                chain(number, server)

    def _choose_voice(self) -> None:
        assert self._engine is not None
        known = self._engine.voices
        if self._args.voice is None:
            # Without it, None has the service take the first there is.
            self._args.voice = self._voice if self._voice in known else None
        elif self._args.voice not in known and not _any_voice(self._args):
            raise VoiceNotFound(self._args.voice, known=known)


def _any_voice(args: argparse.Namespace) -> bool:
    """Whether voices are a matter of the engine's: NVIDIA's server does not tell which it has."""
    return any(url.rstrip("/").endswith(MOSHI_PATH) for url in args.engine)


def _engine_for(args: argparse.Namespace) -> AbstractContextManager[EngineLike]:
    if args.engine:
        return connect_engine(args.engine, os.environ.get("PERSONAPLEX_API_KEY"))
    config = EngineConfig(
        device=args.device,
        quantization=args.quantization,
        kv_dtype=args.kv_dtype,
        context=args.context,
        max_sessions=args.max_sessions or 0,
    )
    return load_engine(args.model, config, args.voice, args.add_voice)


async def _hang_up(runner_args: RunnerArguments) -> None:
    match runner_args:
        case SmallWebRTCRunnerArguments():
            await runner_args.webrtc_connection.disconnect()
        case WebSocketRunnerArguments():
            await runner_args.websocket.close(_WS_BUSY)
