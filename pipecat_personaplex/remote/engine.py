"""The engine's client: one thread, and every server behind one interface."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Self, get_args

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.errors import (
    ConfigError,
    EngineStopped,
    EngineUnreachable,
    PersonaPlexError,
)
from pipecat_personaplex.interface import SessionFrame, SessionStats
from pipecat_personaplex.protocol.audio import open_codec
from pipecat_personaplex.protocol.moshi import OggOpusWriter
from pipecat_personaplex.protocol.session_messages import AudioFormat
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.connection import PermanentlyUnreachable
from pipecat_personaplex.remote.delivery import MAX_FRAMES
from pipecat_personaplex.remote.moshi import MoshiServer
from pipecat_personaplex.remote.native import NativeServer, opening
from pipecat_personaplex.remote.server import Server
from pipecat_personaplex.remote.server_pool import all_voices, require_room, why_none
from pipecat_personaplex.remote.session import RemoteSession, require_fitting
from pipecat_personaplex.remote.session_task import SessionTask
from pipecat_personaplex.remote.stats import RemoteStats, total

_NOTHING = SessionStats(0, 0, 0, 0)


class RemoteEngine:
    """An ``Engine`` on other machines: one server of ``personaplex serve``, or several.

    A new session goes to the least loaded server that has its voice, and to the next one if that
    refuses. One whose connection breaks resumes at its server, where the conversation waits.

    Use it as a context manager, or call ``start`` and ``stop``; on an event loop, in a thread, for
    both wait. All other methods return at once and may be called from any thread or event loop.
    Callbacks come in order on this engine's own thread and must return at once.

    Args:
        urls: One server or more, as ``wss://host:8998``. A path that ends in ``/api/chat`` is taken
            for NVIDIA's own server: there ``say`` and ``update`` raise ``ConfigError``, sessions
            cannot be resumed, text comes with the audio that follows it (80 ms after its own), and
            frames have -1 for their text token and codes. Proxies that the environment names are
            not used.
        api_key: For servers that want one.
        audio: How frames travel: ``"pcm16"`` is exact, adds no delay and needs 0.4 Mbit/s each
            way; ``"opus"`` needs a tenth of that, costs 6.5 ms each way and some quality, and
            requires libopus.
        ssl_context: For ``wss://``, in place of the usual verification.
        max_queued_frames: Input a session may have waiting, in frames of 80 ms; past it the oldest
            frame is dropped and counted.
        start_seconds: How long ``start`` waits for a server.

    Raises:
        ConfigError: A URL or an option cannot be.
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
    ):
        urls = [urls] if isinstance(urls, str) else list(dict.fromkeys(urls))
        if not urls:
            raise ConfigError("a remote engine needs the URL of a server")
        if audio not in get_args(AudioFormat):
            raise ConfigError(f"audio must be pcm16 or opus, not {audio!r}")
        EngineConfig(max_queued_frames=max_queued_frames)  # which checks it
        self._max_queued_frames = max_queued_frames
        self._addresses = [Address.parse(url, api_key, ssl_context) for url in urls]
        self._audio: AudioFormat = audio
        self._start_seconds = start_seconds
        self._servers: list[Server] = []

        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._stop: asyncio.Event | None = None
        # Set once a server answers, or none ever will.
        self._looked = threading.Event()
        # Held while the thread is started or waited for; never taken on the thread itself.
        self._lifecycle = threading.Lock()
        # Guards what callers and the thread share: whether it runs, and who is open.
        self._lock = threading.Lock()
        self._lives: set[SessionTask] = set()
        self._past = _NOTHING
        self._refused = 0

    def __repr__(self) -> str:
        return f"RemoteEngine({[address.url for address in self._addresses]!r})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread and wait for a server; does nothing if it runs.

        Raises:
            EngineUnreachable: No server answered in time, or as one of ours does.
            ConfigError: A package or a library for Opus is missing.
        """
        if threading.current_thread() is self._thread:
            if self._stopping:
                raise EngineStopped("the engine is stopping; start it again from another thread")
            return
        with self._lifecycle:
            if self._thread is not None:
                if self._thread.is_alive() and not self._stopping:
                    return
                self._thread.join()  # stopped from a callback, and about to end
            self._servers = [self._server(address) for address in self._addresses]
            self._stopping = False
            self._loop = self._stop = None
            self._looked.clear()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._main()), name="personaplex-remote", daemon=True
            )
            self._thread.start()
            self._looked.wait(self._start_seconds)
            if not self.healthy:
                self._halt()
                raise EngineUnreachable(why_none(self._servers))

    def _server(self, address: Address) -> Server:
        if address.chat:
            OggOpusWriter()  # now, and not with the first caller
            return MoshiServer(address)
        open_codec(self._audio)  # likewise
        return NativeServer(address, self._audio)

    def stop(self) -> None:
        """End every session and the thread; does nothing if it does not run.

        Called from a callback, it returns at once and the thread ends after that callback.
        """
        if threading.current_thread() is self._thread:
            self._refuse_more()
            return
        with self._lifecycle:
            self._halt()

    def _halt(self) -> None:
        if self._thread is not None:
            self._refuse_more()
            self._thread.join()
            self._thread = None

    def _refuse_more(self) -> None:
        with self._lock:
            self._stopping = True
            if self._stop is not None:
                self._post(self._stop.set)

    @property
    def healthy(self) -> bool:
        """Whether a server can be reached."""
        return self._running and any(server.reachable for server in self._servers)

    @property
    def voices(self) -> list[str]:
        """Names that a persona may use; NVIDIA's own server takes any name of a file it has."""
        return all_voices(self._servers)

    @property
    def max_in_flight_frames(self) -> int:
        """Frames that a session in good order may owe: as many are on their way at once."""
        return MAX_FRAMES

    @property
    def max_sessions(self) -> int:
        """Slots of all servers together; 0 where one does not say, or not yet."""
        slots = [server.max_sessions for server in self._servers]
        return sum(slots) if all(slots) else 0

    @property
    def _running(self) -> bool:
        return self._thread is not None and self._loop is not None and not self._stopping

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
    ) -> RemoteSession:
        """Open a session; returns at once, while a server is asked for a slot.

        What a server says later, ``EngineFull`` and ``PromptTooLong`` included, comes to
        ``on_end`` before any ``on_ready``.

        Args:
            persona: Voice and role.
            sampling: How tokens are drawn.
            on_frame: Called with each frame, in order, on this engine's thread; must return at
                once.
            on_ready: Called once, when the prompt is in and before the first frame.
            on_end: Called once, after the last frame, with the error that ended the session or
                None after ``close``.

        Raises:
            EngineStopped: The engine is not running.
            EngineUnreachable: No server can be reached.
            EngineDraining: Those that can are stopping.
            EngineFull: They have said, just now, that every slot is taken.
            VoiceNotFound: None of them has the persona's voice.
            LimitReached: The persona does not fit into a message.
            ConfigError: The persona is no ``Persona``, or the sampling no ``SamplingParams``.
        """
        session = RemoteSession(
            persona,
            SamplingParams() if sampling is None else sampling,
            on_ready=on_ready,
            on_frame=on_frame,
            on_end=on_end,
            wake=lambda: self._post(life.wake),
            max_queued_frames=self._max_queued_frames,
            mute=min((server.mute for server in self._servers), default=""),
        )
        life = SessionTask(session, self._servers, self._over)
        require_fitting("persona", opening(session, self._audio).model_dump_json())
        with self._lock:
            if not self._running:
                raise EngineStopped("the engine is not running; use it in a with or call start()")
            try:
                require_room(self._servers, persona.voice)
            except PersonaPlexError:
                self._refused += 1
                raise
            self._lives.add(life)
            self._post(life.begin)
        return session

    def stats(self) -> RemoteStats:
        """Figures for logs and metrics; cheap enough to ask for every second."""
        with self._lock:
            lives, past = list(self._lives), self._past
        now = total([past, *(life.session.stats() for life in lives)])
        return RemoteStats(
            healthy=self.healthy,
            sessions=sum(not life.session.closed for life in lives),
            frames=now.frames,
            late_frames=now.late_frames,
            dropped_frames=now.dropped_frames,
            queued_frames=now.queued_frames,
            refused=self._refused,
            servers=tuple(server.stats() for server in self._servers),
        )

    def _post(self, callback: Callable[[], object]) -> None:
        # Once the thread has ended there is nobody to tell.
        with suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback)

    # The thread.

    async def _main(self) -> None:
        stop = asyncio.Event()
        with self._lock:
            self._stop, self._loop = stop, asyncio.get_running_loop()
            if self._stopping:  # before it has begun
                stop.set()
        watching = [asyncio.create_task(server.watch(self._note_look)) for server in self._servers]
        await stop.wait()
        for task in watching:
            task.cancel()
        with self._lock:
            lives = list(self._lives)
        for life in lives:
            life.cut()
        await asyncio.gather(*watching, *(life.wait() for life in lives), return_exceptions=True)
        await asyncio.gather(*(server.parted() for server in self._servers))

    def _note_look(self) -> None:
        servers = self._servers
        if any(server.reachable for server in servers) or all(
            isinstance(server.error, PermanentlyUnreachable) for server in servers
        ):
            self._looked.set()

    def _over(self, life: SessionTask) -> None:
        with self._lock:
            self._lives.discard(life)
            self._past = replace(total([self._past, life.session.stats()]), queued_frames=0)
            self._refused += life.refused
