"""``RemoteEngine``: the engine interface, with the model on other machines."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self, get_args

from pipecat_personaplex import process
from pipecat_personaplex.callbacks import Owner
from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.errors import (
    ConfigError,
    EngineStopped,
    EngineUnreachable,
    PersonaPlexError,
    SessionFailed,
)
from pipecat_personaplex.interface import CallHistory, Feature, SessionFrame, SessionStats
from pipecat_personaplex.protocol.audio import open_codec
from pipecat_personaplex.protocol.call_history import bounded_history
from pipecat_personaplex.protocol.moshi import OggOpusWriter
from pipecat_personaplex.protocol.session_messages import AudioFormat
from pipecat_personaplex.remote.address import ServerAddress
from pipecat_personaplex.remote.connection import PermanentlyUnreachable
from pipecat_personaplex.remote.delivery import MAX_IN_FLIGHT_FRAMES
from pipecat_personaplex.remote.loop_thread import LoopThread
from pipecat_personaplex.remote.moshi import MoshiServer
from pipecat_personaplex.remote.native import NativeServer
from pipecat_personaplex.remote.native_channel import open_message
from pipecat_personaplex.remote.open_instructions import require_fits
from pipecat_personaplex.remote.server import Server
from pipecat_personaplex.remote.server_pool import (
    NO_FEATURES,
    all_voices,
    require_available,
    unreachable_reason,
)
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.session_task import SessionTask
from pipecat_personaplex.remote.stats import RemoteStats, sum_stats

_EXIT_SECONDS = 10.0
_NO_STATS = SessionStats(0, 0, 0, 0)


class RemoteEngine:
    """An ``Engine`` on other machines: one or several servers started by ``personaplex serve``.

    A new session goes to the least loaded server that has its voice, and to the next one if that
    server refuses it. A session whose connection breaks resumes at its server, which preserves the
    conversation. If the server has ended, has lost the session or is stopping, the call moves to
    another server: a new session there remembers it, and the frame indices continue. A speech that
    was being spoken continues there with its next word.

    Use the engine as a context manager, or call ``start`` and ``stop``. Both block; on an event
    loop, call them in a thread. All other methods return at once and may be called from any thread
    or event loop. Callbacks run in order on the engine's own thread and must return at once.

    Example::

        with RemoteEngine("wss://gpu.example.com:8998", api_key=key) as engine:
            session = engine.open_session(Persona("NATF2"), on_frame=print)
            session.wait_ready()
            session.push(pcm)  # float32 mono 24 kHz, any length
            session.close()
            session.wait_ended()

    Args:
        urls: One or several servers, as ``wss://host:8998``. A path that ends in ``/api/chat``
            selects NVIDIA's protocol: ``say``, ``update`` and the other instructions then raise
            ``ConfigError``, sessions can neither resume nor move, text comes with the next audio
            frame (80 ms late), and frames have -1 for their text token and codes. Proxies of the
            environment are not used.
        api_key: For servers that require one.
        audio: The encoding of audio on the connection. ``"pcm16"`` is exact, adds no delay and
            needs 0.4 Mbit/s each way. ``"opus"`` needs a tenth of that, adds 6.5 ms each way, loses
            some quality, and requires libopus.
        ssl_context: For ``wss://``, instead of the default certificate verification.
        max_queued_frames: Input frames (80 ms each) that may wait in a session; when the queue is
            full, the oldest frame is dropped and counted.
        start_seconds: How long ``start`` waits for a server.
        move_calls: Whether a call moves to another server when its own one is lost; if not, its
            session ends.

    Raises:
        ConfigError: A URL or an option is not valid.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        api_key: str | None = None,
        audio: AudioFormat = "pcm16",
        ssl_context: ssl.SSLContext | None = None,
        max_queued_frames: int = EngineConfig.max_queued_frames,
        start_seconds: float = 10.0,
        move_calls: bool = True,
    ):
        urls = [urls] if isinstance(urls, str) else list(dict.fromkeys(urls))
        if not urls:
            raise ConfigError("a remote engine needs the URL of a server")
        if audio not in get_args(AudioFormat):
            raise ConfigError(f"audio must be pcm16 or opus, not {audio!r}")
        EngineConfig(max_queued_frames=max_queued_frames)  # raises ConfigError if not valid
        self._max_queued_frames = max_queued_frames
        self._addresses = [ServerAddress.parse(url, api_key, ssl_context) for url in urls]
        self._audio: AudioFormat = audio
        self._start_seconds = start_seconds
        self._move_calls = move_calls
        self._servers: list[Server] = []

        # Set once a server is reachable, or all are permanently unreachable.
        self._polled = threading.Event()
        self._thread = LoopThread(self._main, self._abandon)
        # ``self._thread.lock`` guards the open sessions and counters below.
        self._session_tasks: set[SessionTask] = set()
        self._ended_stats = _NO_STATS
        self._refused = 0

    def __repr__(self) -> str:
        return f"RemoteEngine({[address.url for address in self._addresses]!r})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread and wait for a server; does nothing if the engine runs.

        Raises:
            EngineUnreachable: No server was reachable in time, or none is a PersonaPlex server.
            EngineStopped: Called from a callback while the engine stops, or a callback of its last
                run has not returned.
            ConfigError: A package or a library for Opus is missing.
        """
        if self._thread.is_current:
            if self._thread.stopping:
                raise EngineStopped("the engine is stopping; start it again from another thread")
            return
        with self._thread.lifecycle:
            if self._thread.running:
                return
            servers = [self._new_server(address) for address in self._addresses]
            self._thread.join(None)  # stopped from a callback; the thread is about to end
            self._polled.clear()
            self._servers = servers
            self._thread.start()
            process.register(self)
            self._polled.wait(self._start_seconds)
            if not self.healthy:
                self._thread.join(None)
                raise EngineUnreachable(unreachable_reason(self._servers))

    def _new_server(self, address: ServerAddress) -> Server:
        # Create a codec now: a missing library must fail start(), not the first caller.
        if address.moshi:
            OggOpusWriter()
            return MoshiServer(address)
        open_codec(self._audio)
        return NativeServer(address, self._audio)

    def stop(self) -> None:
        """End every session and the thread; does nothing if the engine does not run.

        Called from a callback, ``stop`` returns at once, and the thread ends after the callback.
        If a callback does not return for five seconds, ``stop`` returns without it.
        """
        if self._thread.is_current:
            self._thread.request_stop()
            return
        with self._thread.lifecycle:
            self._thread.join(None)

    def stop_at_exit(self) -> None:
        """Stop within seconds, even if a callback blocks: the process is exiting."""
        with self._thread.lifecycle:
            self._thread.join(_EXIT_SECONDS)

    def lose_thread(self) -> None:
        """Return to the state before ``start``, because this process is a fork.

        The sessions end here, and continue in the other process.
        """
        error = EngineStopped("this process was forked from the one in which the session runs")
        for task in self._session_tasks:
            task.session.lose_thread(error)
        self._thread.lose()
        self._polled = threading.Event()
        self._servers, self._session_tasks = [], set()

    def _abandon(self, session: Owner, error: SessionFailed) -> None:
        """End a session whose callback does not return; runs on another thread."""
        assert isinstance(session, RemoteSession)
        session.abandon(error)

    @property
    def healthy(self) -> bool:
        """Whether at least one server is reachable, and no callback blocks the thread."""
        running = self._thread.running and not self._thread.blocked
        return running and any(server.reachable for server in self._servers)

    @property
    def voices(self) -> list[str]:
        """Names a persona may use; NVIDIA's server also accepts any other voice file it has."""
        return all_voices(self._servers)

    @property
    def features(self) -> frozenset[Feature]:
        """What a session can do if the best of the servers serves it."""
        return NO_FEATURES.union(*(server.features for server in self._servers))

    @property
    def max_in_flight_frames(self) -> int:
        """Input frames of a session that may be sent before their output frames arrive."""
        return MAX_IN_FLIGHT_FRAMES

    @property
    def max_sessions(self) -> int:
        """Slots of all servers together; 0 while a server has not reported its slots."""
        slots = [server.max_sessions for server in self._servers]
        return sum(slots) if all(slots) else 0

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
        history: CallHistory | None = None,
    ) -> RemoteSession:
        """Open a session; returns at once, while a slot is requested from a server.

        Errors that a server reports later, ``EngineFull`` and ``PromptTooLong`` included, are
        passed to ``on_end``; ``on_ready`` is then never called.

        Args:
            persona: Voice and role.
            sampling: How tokens are sampled.
            on_frame: Called with each output frame, in order.
            on_ready: Called once, when the prompt is computed and before the first frame.
            on_end: Called once, after the last frame, with the error that ended the session or
                None after ``close``.
            history: A call to continue; the newest 3,000 of its frames are sent.

        Raises:
            EngineStopped: The engine is not running.
            EngineUnreachable: No server is reachable.
            EngineDraining: Every reachable server is stopping.
            EngineFull: Every slot was taken when the servers were last polled.
            VoiceNotFound: No reachable server has the persona's voice.
            LimitReached: The persona does not fit into a message.
            ConfigError: ``persona`` is not a ``Persona``, ``sampling`` is not a
                ``SamplingParams``, or no server supports ``history``.
        """
        if history is not None and not len(history.tokens):
            history = None
        session = RemoteSession(
            persona,
            SamplingParams() if sampling is None else sampling,
            on_ready=on_ready,
            on_frame=on_frame,
            on_end=on_end,
            wake=lambda: self._thread.post(task.wake),
            callbacks=self._thread.callbacks,
            max_queued_frames=self._max_queued_frames,
            # Until a server is chosen, what no server supports is refused.
            features=self.features,
            history=None if history is None else bounded_history(history),
        )
        task = SessionTask(
            session, self._servers, self._on_session_ended, move_calls=self._move_calls
        )
        require_fits("persona", open_message(session, self._audio))
        required: frozenset[Feature] = frozenset({"history"}) if history else NO_FEATURES
        with self._thread.lock:
            self._thread.require_running()
            try:
                require_available(self._servers, persona.voice, required)
            except PersonaPlexError:
                self._refused += 1
                raise
            self._session_tasks.add(task)
            self._thread.post(task.start)
        return session

    def stats(self) -> RemoteStats:
        """Metrics for logs and dashboards; cheap enough to call every second."""
        with self._thread.lock:
            tasks, ended = list(self._session_tasks), self._ended_stats
        total = sum_stats([ended, *(task.session.stats() for task in tasks)])
        return RemoteStats(
            healthy=self.healthy,
            sessions=sum(not task.session.closed for task in tasks),
            frames=total.frames,
            late_frames=total.late_frames,
            dropped_frames=total.dropped_frames,
            queued_frames=total.queued_frames,
            refused=self._refused,
            servers=tuple(server.stats() for server in self._servers),
            slow_callbacks=self._thread.callbacks.slow,
            stuck_callbacks=self._thread.callbacks.stuck,
        )

    # What follows runs on the engine's thread.

    async def _main(self, stop: asyncio.Event) -> None:
        servers = self._servers  # ``start`` may replace it while this run still ends
        watching = [asyncio.create_task(server.watch(self._on_polled)) for server in servers]
        await stop.wait()
        for watch in watching:
            watch.cancel()
        with self._thread.lock:
            tasks = list(self._session_tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*watching, *(task.wait() for task in tasks), return_exceptions=True)
        await asyncio.gather(*(server.wait_released() for server in servers))

    def _on_polled(self) -> None:
        servers = self._servers
        if any(server.reachable for server in servers) or all(
            isinstance(server.error, PermanentlyUnreachable) for server in servers
        ):
            self._polled.set()

    def _on_session_ended(self, task: SessionTask) -> None:
        with self._thread.lock:
            self._session_tasks.discard(task)
            self._ended_stats = replace(
                sum_stats([self._ended_stats, task.session.stats()]), queued_frames=0
            )
            self._refused += task.refused
