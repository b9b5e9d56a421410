"""What every bot shares: one engine for all calls, and the setup and end of each call."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from types import FrameType

from loguru import logger

# Import the runner before anything reads the environment: it loads a .env file.
from pipecat.runner import run as runner
from pipecat.runner.types import (
    RunnerArguments,
    SmallWebRTCRunnerArguments,
    WebSocketRunnerArguments,
)
from pipecat.transports.base_transport import BaseTransport
from starlette.websockets import WebSocketDisconnect

from bots.bot_call import BotCall as BotCall
from bots.busy import client_address, error_summary
from bots.engines import connect_engine, load_engine
from bots.handshakes import Handshakes
from bots.logs import configure_bot_logging
from bots.options import BotParser
from bots.protection_options import connect_seconds
from bots.runner_app import Protection, configure_runner
from bots.running_calls import RunningCalls
from bots.transports import (
    open_transport,
    sample_rate,
    transport_of,
)
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig
from pipecat_personaplex.errors import EngineFull, PersonaPlexError, UserError, VoiceNotFound
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.process import frozen_objects
from pipecat_personaplex.protocol.moshi import MOSHI_PATH
from pipecat_personaplex.server.listen import open_socket
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from pipecat_personaplex.service.webrtc_clock import use_monotonic_time
from pipecat_personaplex.talk.webrtc import prepare_caller

# WebSocket close code "try again later".
_WS_TRY_AGAIN_LATER = 1013
# Connections that are not complete yet. Each has a peer connection or a WebSocket, but no slot.
_MAX_HANDSHAKES = 64
# Twilio sends its handshake as soon as it has connected.
_TWILIO_HANDSHAKE_SECONDS = 10.0


class BotHost:
    """Loads the engine, starts Pipecat's runner and serves the calls of one bot.

    Args:
        description: Describes the bot in ``--help``.
        converse: Builds and runs the pipeline of one call.
        voice: The voice if no other is chosen and the model has it.
        prompt: The role if no other is given.
        extend: Adds options of the bot's own.
        check: Validates these options before the model is loaded; raises ``ConfigError``.
        check_engine: Called with all options and the engine before the first call; raises
            ``ConfigError`` if the engine cannot do what the options need.

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
        check_engine: Callable[[argparse.Namespace, EngineLike], object] | None = None,
    ):
        self._description = description
        self._converse = converse
        self._voice = voice
        self._prompt = prompt
        self._extend = extend
        self._check = check
        self._check_engine = check_engine
        self._engine: EngineLike | None = None
        self._args = argparse.Namespace()
        self._active_calls = 0
        self._running = RunningCalls()
        self._handshakes = Handshakes(_MAX_HANDSHAKES)
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
                if args.transport == "webrtc":
                    use_monotonic_time()
                protection = Protection.of(args, lambda: self.full)
                if not args.direct:
                    # Before the model is loaded: a port that is in use is noticed at once.
                    listening = open_socket(args.host, args.port)
                    stack.callback(listening.close)
                    configure_runner(protection, listening, self._chain_signals)
                self._engine = engine
                if self._engine is None:
                    self._engine = stack.enter_context(_create_engine(args))
                if self._check_engine is not None:
                    self._check_engine(args, self._engine)
                self._choose_voice()
                stack.enter_context(frozen_objects())

            parser = BotParser(self._description, self._prompt, prepare)
            if self._extend is not None:
                self._extend(parser)
            try:
                runner.main(parser)
            except PersonaPlexError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2 if isinstance(error, UserError) else 1
            except Exception as error:
                # With --direct, Pipecat creates the Daily room before the first call. A wrong
                # Daily key raises here.
                # If the options could not be parsed, `_args` is still empty.
                if not getattr(self._args, "direct", False) or self._signals_chained:
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
        self._chain_signals()  # with --direct; a server has done it at its start
        client = client_address.get()
        log = logger.bind(client=client)
        try:
            self._running.require_open()
            self._refuse_if_full()
            # A client that never completes its handshake holds no slot.
            transport = await self._shake_hands(runner_args)
            call = self._create_call(runner_args, transport, client)
            if self._args.transport == "daily":
                await self._converse_in_room(call, client)
            else:
                with self._reserve_slot(client):
                    await self._converse(call)
        except (PersonaPlexError, ValueError, OSError) as error:
            # Pipecat raises ValueError for a connection that does not follow its protocol.
            log.error("call refused: client {}: {}", client or "unknown", error_summary(error))
            await _hang_up(runner_args)
        except Exception as error:
            log.opt(exception=error).error("call failed: client {}", client or "unknown")
            await _hang_up(runner_args)

    def _refuse_if_full(self) -> None:
        if self.full:
            raise EngineFull(self._max_calls)

    @contextmanager
    def _reserve_slot(self, client: str) -> Iterator[None]:
        # Several callers may complete their handshakes at once; only one gets the last slot.
        self._refuse_if_full()
        self._active_calls += 1
        log = logger.bind(client=client)
        log.info("call accepted: {}, client {}", self._args.transport, client or "unknown")
        try:
            yield
        finally:
            self._active_calls -= 1

    async def _converse_in_room(self, call: BotCall, client: str) -> None:
        """Serve a call in a room, which the bot joins first; a person who joins gets the slot."""
        conversation = asyncio.ensure_future(self._converse(call))
        joined = asyncio.ensure_future(call.connected.wait())
        try:
            # If nobody joins the room within --connect-seconds, the call's CallerWatch ends the
            # conversation, and this wait with it.
            either = asyncio.wait({conversation, joined}, return_when=asyncio.FIRST_COMPLETED)
            await self._handshakes.run(either, None)
            with self._reserve_slot(client) if joined.done() else nullcontext():
                await conversation
        finally:
            joined.cancel()
            conversation.cancel()
            await asyncio.wait({conversation})

    async def _shake_hands(self, runner_args: RunnerArguments) -> BaseTransport:
        transport = transport_of(runner_args)
        if transport != self._args.transport:
            raise ValueError(f"this bot serves only -t {self._args.transport}")
        if isinstance(runner_args, SmallWebRTCRunnerArguments):
            prepare_caller(runner_args.webrtc_connection)
        seconds = connect_seconds(self._args)
        if transport == "twilio":
            seconds = min(seconds or _TWILIO_HANDSHAKE_SECONDS, _TWILIO_HANDSHAKE_SECONDS)
        return await self._handshakes.run(open_transport(runner_args), seconds)

    def _create_call(
        self, runner_args: RunnerArguments, transport: BaseTransport, client: str
    ) -> BotCall:
        assert self._engine is not None, "main() comes first"
        return BotCall(
            self._engine,
            transport,
            PersonaPlexLLMSettings(voice=self._args.voice, system_instruction=self._args.prompt),
            self._args,
            rate=sample_rate(self._args.transport),
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

        def end_calls() -> None:
            self._handshakes.end()
            self._running.stop()

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
        adapter=args.adapter,
        device=args.device,
        quantization=None if args.quantization == "none" else args.quantization,
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
            with suppress(RuntimeError, WebSocketDisconnect):  # the client has closed it
                await runner_args.websocket.close(_WS_TRY_AGAIN_LATER)
