"""What every bot shares: one engine for all calls, and the setup and end of each call."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType

from loguru import logger
from pipecat.frames.frames import ErrorFrame, Frame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.frame_processor import FrameProcessor

# Import the runner before anything reads the environment: it loads a .env file.
from pipecat.runner import run as runner
from pipecat.runner.types import (
    RunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)
from pipecat.transports.base_transport import BaseTransport
from pipecat.workers.runner import WorkerRunner

from bots.busy import RefuseWhenFull, client_address, error_summary
from bots.engines import connect_engine, load_engine
from bots.logs import configure_bot_logging
from bots.options import BotParser
from bots.session_log import LoggedEngine
from bots.transports import (
    open_transport,
    sample_rate,
    transport_of,
)
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig
from pipecat_personaplex.errors import EngineFull, PersonaPlexError, UserError, VoiceNotFound
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from pipecat_personaplex.talk.webrtc import shorten_microphone_buffer

# WebSocket close code "try again later".
_WS_TRY_AGAIN_LATER = 1013


class BotCall:
    """One call, as a bot's ``converse`` function gets it.

    Args:
        engine: The engine that all calls share.
        transport: The connection to the caller.
        settings: The agent's settings, from the options.
        args: All options, the runner's included.
        rate: Sample rate of the pipeline, in and out.
        idle_seconds: How long the pipeline may be idle before the call ends; None for ever.
        running: Workers of the calls in progress. The call adds its own while it runs.
        client: Name of the client in the log; empty if it is not known.

    Attributes:
        engine: The same engine; sessions that are opened through it are logged.
    """

    def __init__(
        self,
        engine: EngineLike,
        transport: BaseTransport,
        settings: PersonaPlexLLMSettings,
        args: argparse.Namespace,
        *,
        rate: int,
        idle_seconds: float | None,
        running: set[PipelineWorker],
        client: str = "",
    ):
        self.engine = LoggedEngine(engine, client)
        self.transport = transport
        self.settings = settings
        self.args = args
        self._rate = rate
        self._idle_seconds = idle_seconds
        self._running = running
        self._client = client

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
        end_reason = ""

        @worker.event_handler("on_pipeline_finished")  # type: ignore[untyped-decorator]
        async def on_pipeline_finished(worker: object, frame: Frame) -> None:
            nonlocal end_reason
            end_reason = end_reason or getattr(frame, "reason", None) or "the pipeline ended"

        @worker.event_handler("on_pipeline_error")  # type: ignore[untyped-decorator]
        async def on_pipeline_error(worker: object, frame: ErrorFrame) -> None:
            nonlocal end_reason
            if frame.processor is not None and not frame.processor.is_usable:
                end_reason = " ".join(frame.error.split())  # this error ends the pipeline

        @self.transport.event_handler("on_client_disconnected")  # type: ignore[untyped-decorator]
        async def on_client_disconnected(transport: object, client: object) -> None:
            await worker.cancel(reason="the caller hung up")

        if self.args.transport == "daily":
            # Pipecat would run on without a room, and the session would hold its slot for ever.
            @self.transport.event_handler("on_error")  # type: ignore[untyped-decorator]
            async def on_error(transport: object, error: str) -> None:
                await worker.cancel(reason="the Daily room failed")

        workers = WorkerRunner(handle_sigint=False)
        await workers.add_workers(worker)
        self._running.add(worker)
        started = time.monotonic()
        try:
            await workers.run()
        finally:
            self._running.discard(worker)
            logger.bind(session=self.engine.session_id, client=self._client).info(
                "call ended after {:.1f} s: {}",
                time.monotonic() - started,
                end_reason or "the pipeline did not start",
            )


class BotHost:
    """Loads the engine, starts Pipecat's runner and serves the calls of one bot.

    Args:
        description: Describes the bot in ``--help``.
        converse: Builds and runs the pipeline of one call.
        voice: The voice if no other is chosen and the model has it.
        prompt: The role if no other is given.
        extend: Adds options of the bot's own.
        check: Validates these options before the model is loaded; raises ``ConfigError``.

    Example::

        host = BotHost("A teacher.", converse, voice="NATF2", prompt="You are a teacher.")

        async def bot(runner_args: RunnerArguments) -> None:
            await host.serve_call(runner_args)

        if __name__ == "__main__":
            sys.exit(host.main())
    """

    def __init__(
        self,
        description: str,
        converse: Callable[[BotCall], Awaitable[None]],
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
        self._active_calls = 0
        self._running: set[PipelineWorker] = set()
        self._signals_chained = False

    def main(self, engine: EngineLike | None = None) -> int:
        """Serve callers until interrupted.

        Args:
            engine: A running engine to use; None loads or connects the one that the options name.

        Returns:
            The exit code; 2 for a mistake that the user can correct.
        """
        with ExitStack() as stack:

            def prepare(args: argparse.Namespace) -> None:
                configure_bot_logging(args.log_level, as_json=args.log_json)
                if self._check is not None:
                    self._check(args)
                self._args = args
                self._engine = engine
                if engine is None:
                    self._engine = stack.enter_context(_create_engine(args))
                self._choose_voice()
                # A full garbage collection scans all imported modules and stalls every call for
                # 200 ms. Frozen objects are not scanned.
                gc.collect()
                gc.freeze()

            parser = BotParser(self._description, self._prompt, prepare)
            if self._extend is not None:
                self._extend(parser)
            runner.app.add_middleware(RefuseWhenFull, full=lambda: self.full)
            try:
                runner.main(parser)
            except PersonaPlexError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2 if isinstance(error, UserError) else 1
            except Exception as error:
                # With --direct, Pipecat creates the Daily room before the first call. A wrong
                # Daily key raises here.
                if not self._args.direct or self._signals_chained:
                    raise
                print(f"error: no Daily room: {error_summary(error)}", file=sys.stderr)
                return 2
        return 0

    @property
    def full(self) -> bool:
        """Whether all slots are in use."""
        return self._active_calls >= self._max_calls

    @property
    def _max_calls(self) -> int:
        assert self._engine is not None, "main() comes first"
        requested: int | None = self._args.max_sessions
        return requested or min(
            DEFAULT_MAX_SESSIONS, self._engine.max_sessions or DEFAULT_MAX_SESSIONS
        )

    async def serve_call(self, runner_args: RunnerArguments) -> None:
        """Serve one call, from its connection to its end; an error ends only this call."""
        self._chain_signals()
        client = client_address.get()
        log = logger.bind(client=client)
        try:
            with self._reserve_slot():
                call = await self._connect(runner_args, client)
                log.info("call accepted: {}, client {}", self._args.transport, client or "unknown")
                await self._converse(call)
        except (PersonaPlexError, ValueError, OSError) as error:
            # Pipecat raises ValueError for a connection that does not follow its protocol.
            log.error("call refused: client {}: {}", client or "unknown", error_summary(error))
            await _hang_up(runner_args)

    @contextmanager
    def _reserve_slot(self) -> Iterator[None]:
        # Two requests may pass RefuseWhenFull at the same time; only one gets the last slot.
        if self.full:
            raise EngineFull(self._max_calls)
        self._active_calls += 1
        try:
            yield
        finally:
            self._active_calls -= 1

    async def _connect(self, runner_args: RunnerArguments, client: str) -> BotCall:
        assert self._engine is not None, "main() comes first"
        transport = transport_of(runner_args)
        if transport != self._args.transport:
            raise ValueError(f"this bot serves only -t {self._args.transport}")
        if isinstance(runner_args, SmallWebRTCRunnerArguments):
            shorten_microphone_buffer(runner_args.webrtc_connection)
        return BotCall(
            self._engine,
            await open_transport(runner_args),
            PersonaPlexLLMSettings(voice=self._args.voice, system_instruction=self._args.prompt),
            self._args,
            rate=sample_rate(transport),
            idle_seconds=runner_args.pipeline_idle_timeout_secs,
            running=self._running,
            client=client,
        )

    def _chain_signals(self) -> None:
        """Make SIGINT and SIGTERM end the running calls too; uvicorn waits for them for ever."""
        if self._signals_chained:
            return
        self._signals_chained = True
        loop = asyncio.get_running_loop()
        ending: set[asyncio.Task[None]] = set()

        def end_calls() -> None:
            ending.update(
                loop.create_task(worker.cancel(reason="the bot is stopping"))
                for worker in self._running
            )

        def chain(number: int, server: Callable[[int, FrameType | None], object]) -> None:
            def on_signal(number: int, frame: FrameType | None) -> None:
                loop.call_soon_threadsafe(end_calls)
                server(number, frame)

            signal.signal(number, on_signal)

        # uvicorn has installed its handlers by now. It restores the original ones when it ends.
        for number in (signal.SIGINT, signal.SIGTERM):
            server = signal.getsignal(number)
            if callable(server):
                chain(number, server)

    def _choose_voice(self) -> None:
        assert self._engine is not None
        known = self._engine.voices
        if self._args.voice is None:
            # None makes the service use the model's first voice.
            self._args.voice = self._voice if self._voice in known else None
        elif self._args.voice not in known and not _voices_unknown(self._args):
            raise VoiceNotFound(self._args.voice, known=known)


def _voices_unknown(args: argparse.Namespace) -> bool:
    """Whether a server is NVIDIA's, which does not list its voices: any name may be valid."""
    return any(url.rstrip("/").endswith(MOSHI_PATH) for url in args.engine)


def _create_engine(args: argparse.Namespace) -> AbstractContextManager[EngineLike]:
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
            await runner_args.websocket.close(_WS_TRY_AGAIN_LATER)
