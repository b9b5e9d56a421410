"""The client of NVIDIA's server: sessions over ``/api/chat``, the Moshi protocol."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlencode

import numpy as np
from loguru import logger
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.audio import FrameBuffer, Pcm, QueuedFrame
from pipecat_personaplex.constants import CODEBOOKS, ZERO_TOKEN
from pipecat_personaplex.errors import (
    BadMessage,
    InvalidAudio,
    LimitReached,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.interface import FrameTimings, SessionFrame
from pipecat_personaplex.protocol.moshi import Kind, OggOpusReader, OggOpusWriter, pack, unpack
from pipecat_personaplex.remote.address import ServerAddress
from pipecat_personaplex.remote.connection import open_websocket, probe
from pipecat_personaplex.remote.server import Server, never
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.tasks import run_until_first_ends, wait_until_cancelled

RELEASED_VOICES = tuple(
    f"{prefix}{number}"
    for prefix, count in (("NATF", 4), ("NATM", 4), ("VARF", 5), ("VARM", 5))
    for number in range(count)
)
"""The voices that NVIDIA released; the protocol has no request for a server's own list."""

# The server computes the prompt on the thread that sends pongs, and a second caller waits until the
# first has disconnected: both take long.
_PING_SECONDS = 20.0
_PONG_SECONDS = 20.0
_PROMPT_SECONDS = 60.0
_VOICE_SUFFIXES = (".pt", ".wav")
# Input frames in transit or in the server's queue: two seconds.
_MAX_IN_FLIGHT_FRAMES = 25
# The model's delay and the codec swallow the first frames: the server returns no audio for them.
# An input frame without output counts as dropped after this long, until the first output frame ...
_STARTUP_DROP_SECONDS = 0.5
# ... and after this long from then on. No output frame names its input frame.
_DROP_SECONDS = 2.0
_SILENT_SECONDS = 10.0
_CHECK_SECONDS = 0.25
# Servers accept 8 KiB for the first line of a request, path and version included.
_MAX_QUERY_BYTES = 6 << 10
_MAX_TEXT_CHARS = 64 << 10
_UNKNOWN_CODES = np.full(CODEBOOKS, ZERO_TOKEN, dtype=np.int64)


class MoshiServer(Server):
    """A server of NVIDIA's protocol, which reports no state: a poll only tests whether it listens.

    Args:
        address: How to reach it.
    """

    def __init__(self, address: ServerAddress):
        super().__init__(address)
        self.voices = RELEASED_VOICES

    async def poll(self) -> None:
        """Test whether the server accepts TCP connections.

        Raises:
            EngineUnreachable: It does not.
        """
        await probe(self.address)
        self.mark_reachable(len(self._channels))

    def has_voice(self, name: str) -> bool:
        """Always True: the server may have voice files that this client cannot list."""
        return True

    def new_channel(self, session: RemoteSession) -> MoshiChannel:
        """Create a channel for a session; the caller opens it."""
        return MoshiChannel(self.address, session)


class MoshiChannel:
    """One session over one connection.

    Args:
        address: The session's server.
        session: The caller's side.

    Attributes:
        draining: Never set: the protocol does not announce the end.
        can_move: Not used: the protocol sends no tokens, so that a call cannot move.
        server_id: Empty: the protocol has no ids.
    """

    def __init__(self, address: ServerAddress, session: RemoteSession):
        self.session = session
        self.draining = asyncio.Event()
        self.can_move = never
        self.server_id = ""
        self._address = address
        self._writer = OggOpusWriter()
        self._reader = OggOpusReader()
        self._websocket: ClientConnection | None = None
        self._awake = asyncio.Event()
        # When the caller pushed each input frame that has no output frame yet (monotonic seconds).
        # Bounded by _MAX_IN_FLIGHT_FRAMES: at the limit, frames wait in the session's queue, which
        # drops the oldest.
        self._in_flight: deque[float] = deque()
        self._received = FrameBuffer()
        self._text = ""
        self._next_index = 0
        self._expired = 0  # input frames that count as dropped because no output frame came in time
        # Input frames sent since the last output frame, and when the first of them was sent.
        self._unanswered = 0
        self._unanswered_since = 0.0

    def unconfirmed(self) -> list[QueuedFrame]:
        """Empty: output frames do not name their input frames."""
        return []

    def wake(self) -> None:
        """Notify the channel that the session has something to send."""
        self._awake.set()

    async def open(self) -> None:
        """Connect. Whether the server has room is only known when it has computed the prompt.

        Raises:
            EngineUnreachable: The server refuses, or does not respond.
            LimitReached: The persona does not fit into a URL.
            SessionFailed: The server refuses this persona.
        """
        parameters = query(self.session)
        if len(urlencode(parameters)) > _MAX_QUERY_BYTES:
            raise LimitReached(
                "the prompt is too long for NVIDIA's protocol, which puts it into the URL"
            )
        self._websocket = await open_websocket(
            self._address,
            ping_seconds=_PING_SECONDS,
            pong_seconds=_PONG_SECONDS,
            query=parameters,
        )
        logger.bind(session=self.session.id).debug("{}: connected", self._address.url)

    async def run(self) -> None:
        """Send and receive until cancelled.

        Raises:
            SessionLost: The connection broke; this protocol cannot resume.
            SessionFailed: The server reports an error or violates the protocol.
        """
        assert self._websocket is not None, "open() comes first"
        try:
            await self._await_handshake(self._websocket)
            await run_until_first_ends(
                self._receive(self._websocket), self._send(self._websocket), self._supervise()
            )
        except ConnectionClosed as error:
            raise SessionLost(
                f"{self._address.url}: the connection broke, and NVIDIA's protocol cannot resume: "
                f"{error}"
            ) from error

    async def close(self) -> None:
        """Disconnect, which frees the server's slot."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()

    async def _await_handshake(self, websocket: ClientConnection) -> None:
        try:
            async with asyncio.timeout(_PROMPT_SECONDS):
                while not self.session.ready:
                    self._handle(await websocket.recv())
        except TimeoutError:
            raise SessionFailed(
                f"{self._address.url} has not computed the prompt within {_PROMPT_SECONDS:g} s; it "
                "may be busy with another caller"
            ) from None

    async def _receive(self, websocket: ClientConnection) -> None:
        while True:
            self._handle(await websocket.recv())

    async def _send(self, websocket: ClientConnection) -> None:
        self._awake.set()
        with suppress(ConnectionClosed):
            while True:
                await self._awake.wait()
                self._awake.clear()
                while (message := self._next_message()) is not None:
                    await websocket.send(message)
        await wait_until_cancelled()

    def _next_message(self) -> bytes | None:
        room = len(self._in_flight) < _MAX_IN_FLIGHT_FRAMES
        frame = self.session.take_frame() if room else None
        if frame is None:
            return None
        self._in_flight.append(frame.arrived)
        if not self._unanswered:
            self._unanswered_since = time.monotonic()
        self._unanswered += 1
        return pack(Kind.AUDIO, self._writer.encode(frame.pcm))

    async def _supervise(self) -> None:
        """Count input frames as dropped when no output frame comes for them.

        Raises:
            SessionFailed: The server returns no audio at all.
        """
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            now = time.monotonic()
            # Fewer frames than this may still be in transit, from a caller who then paused.
            many = self._unanswered > _MAX_IN_FLIGHT_FRAMES
            if many and now - self._unanswered_since > _SILENT_SECONDS:
                raise SessionFailed(
                    f"{self._address.url} has sent no audio for {_SILENT_SECONDS:g} s"
                )
            limit = _DROP_SECONDS if self._next_index else _STARTUP_DROP_SECONDS
            self._expire(now - limit)

    def _expire(self, before: float) -> None:
        while self._in_flight and self._in_flight[0] < before:
            self._in_flight.popleft()
            self._expired += 1
            self.session.count_dropped(1)
            self._awake.set()  # there is room for the next frame

    def _handle(self, message: str | bytes) -> None:
        try:
            if isinstance(message, str):
                raise BadMessage("a message must be binary, not text")
            self._handle_kind(*unpack(message))
        except (BadMessage, InvalidAudio) as error:
            raise SessionFailed(
                f"{self._address.url} does not follow NVIDIA's protocol: {error}"
            ) from error

    def _handle_kind(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.HANDSHAKE if not self.session.ready:
                self.session.mark_ready()
            case Kind.AUDIO if not self.session.ready:
                raise BadMessage("audio came before the handshake")
            case Kind.AUDIO:
                for pcm in self._received.push(self._reader.decode(payload)):
                    self._deliver(pcm)
            case Kind.TEXT:
                self._text += payload.decode(errors="replace")
                if len(self._text) > _MAX_TEXT_CHARS:
                    raise BadMessage(
                        f"more than {_MAX_TEXT_CHARS >> 10} KiB of text came without audio"
                    )
            case Kind.ERROR:
                raise SessionFailed(f"{self._address.url}: {payload.decode(errors='replace')}")

    def _deliver(self, pcm: Pcm) -> None:
        """Pass an output frame, float32 [1920], and the text received before it to the caller."""
        now = time.monotonic()
        seconds = now - self._in_flight.popleft() if self._in_flight else self._revive_expired()
        text, self._text = self._text, ""
        frame = SessionFrame(
            self._next_index,
            pcm,
            text,
            ZERO_TOKEN,
            _UNKNOWN_CODES,
            _UNKNOWN_CODES,
            FrameTimings(queued_ms=0.0, step_ms=seconds * 1e3),
        )
        self._next_index += 1
        self._unanswered = 0
        self.session.deliver(frame, seconds)
        self._awake.set()

    def _revive_expired(self) -> float:
        """Take back one expired frame, whose output frame came late.

        Returns:
            The latency to report in seconds; the true one is not known any more.
        """
        if not self._expired:
            return 0.0
        self._expired -= 1
        self.session.count_dropped(-1)
        return _DROP_SECONDS


def query(session: RemoteSession) -> Mapping[str, object]:
    """The persona and the sampling parameters as query parameters of NVIDIA's protocol."""
    voice, sampling = session.persona.voice, session.sampling
    return {
        "voice_prompt": voice if voice.endswith(_VOICE_SUFFIXES) else f"{voice}.pt",
        "text_prompt": session.persona.text_prompt,
        "seed": sampling.seed,
        "audio_temperature": sampling.temperature_audio,
        "text_temperature": sampling.temperature_text,
        "audio_topk": sampling.top_k_audio,
        "text_topk": sampling.top_k_text,
    }
