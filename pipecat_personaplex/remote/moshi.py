"""A session over ``/api/chat``, the protocol of NVIDIA's and Moshi's own servers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlencode

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, ZERO_TOKEN
from pipecat_personaplex.errors import (
    BadMessage,
    InvalidAudio,
    LimitReached,
    SessionFailed,
    SessionLost,
)
from pipecat_personaplex.interface import FrameTimings, SessionFrame
from pipecat_personaplex.protocol.moshi import Kind, OggOpusReader, OggOpusWriter, pack, unpack
from pipecat_personaplex.remote.address import Address
from pipecat_personaplex.remote.connection import open_websocket, probe
from pipecat_personaplex.remote.server import Server
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.tasks import first_to_end, for_ever

RELEASED_VOICES = tuple(
    f"{kind}{number}"
    for kind, count in (("NATF", 4), ("NATM", 4), ("VARF", 5), ("VARM", 5))
    for number in range(count)
)
"""What NVIDIA released; a server of that kind cannot be asked."""

# Such a server computes prompts on the thread that should answer pings, and a second caller waits
# for the first to leave.
_PING_SECONDS = 20.0
_PONG_SECONDS = 20.0
_PROMPT_SECONDS = 60.0
_VOICE_SUFFIXES = (".pt", ".wav")
# On their way, or waiting at the server: two seconds.
_MAX_FRAMES = 25
# What the first frames go into, a model's delay or a codec's, comes out no more.
_SWALLOWED_SECONDS = 0.5
# A frame lost later, in its codec or for want of time; no answer says which one it is for.
_LOST_SECONDS = 2.0
_SILENT_SECONDS = 10.0
_CHECK_SECONDS = 0.25
# Servers take 8 KiB for a request's first line, and the sampling needs its share.
_MAX_QUERY_BYTES = 6 << 10
_MAX_TEXT = 64 << 10
_UNKNOWN_CODES = np.full(CODEBOOKS, ZERO_TOKEN, dtype=np.int64)


class MoshiServer(Server):
    """A server of NVIDIA's. It cannot be asked how it is, so only that it listens is known.

    Args:
        address: Where it is.
    """

    def __init__(self, address: Address):
        super().__init__(address)
        self.voices = RELEASED_VOICES
        self.mute = f"{address.url}: NVIDIA's protocol can neither say nor update"

    async def look(self) -> None:
        """See whether anybody listens."""
        await probe(self.address)
        self.answered(len(self._lines))

    def has_voice(self, name: str) -> bool:
        """Any, for what is known here."""
        return True

    def line(self, session: RemoteSession) -> MoshiChannel:
        """A way to the server that is yet to be opened."""
        return MoshiChannel(self, session)


class MoshiChannel:
    """One session over one connection.

    Args:
        server: Where the session is.
        session: Its caller's side.
    """

    def __init__(self, server: MoshiServer, session: RemoteSession):
        self.session = session
        self._address = server.address
        self._writer = OggOpusWriter()
        self._reader = OggOpusReader()
        self._websocket: ClientConnection | None = None
        self._awake = asyncio.Event()
        # When the caller gave each frame that has no answer yet; bounded by _MAX_FRAMES, past which
        # frames wait in the session, whose queue drops the oldest.
        self._sent: deque[float] = deque()
        self._heard: Pcm = np.zeros(0, dtype=np.float32)
        self._text = ""
        self._index = 0
        self._forgotten = 0
        # Frames sent since the last answer, and when the first of them was.
        self._unheard = 0
        self._unheard_since = 0.0

    def wake(self) -> None:
        """The session has something to send."""
        self._awake.set()

    async def open(self) -> None:
        """Connect; whether there is room shows when the prompt is in.

        Raises:
            EngineUnreachable: The server refuses, or does not answer.
            LimitReached: The persona does not fit into a URL.
            SessionFailed: The server says so of this one.
        """
        wanted = query(self.session)
        if len(urlencode(wanted)) > _MAX_QUERY_BYTES:
            raise LimitReached(
                "the prompt is too long for NVIDIA's protocol, which puts it into the URL"
            )
        self._websocket = await open_websocket(
            self._address,
            ping_seconds=_PING_SECONDS,
            pong_seconds=_PONG_SECONDS,
            query=wanted,
        )

    async def run(self) -> None:
        """Converse until cancelled.

        Raises:
            SessionLost: The connection broke; this protocol cannot resume.
            SessionFailed: The server says so, or what it says makes no sense.
        """
        assert self._websocket is not None, "open comes first"
        try:
            await self._await_handshake(self._websocket)
            await first_to_end(
                self._receive(self._websocket), self._send(self._websocket), self._oversee()
            )
        except ConnectionClosed as error:
            raise SessionLost(
                f"{self._address.url}: the connection broke, and NVIDIA's protocol cannot resume: "
                f"{error}"
            ) from error

    async def leave(self) -> None:
        """Hang up."""
        websocket, self._websocket = self._websocket, None
        if websocket is not None:
            await websocket.close()

    async def _await_handshake(self, websocket: ClientConnection) -> None:
        try:
            async with asyncio.timeout(_PROMPT_SECONDS):
                while not self.session.ready:
                    self._take(await websocket.recv())
        except TimeoutError:
            raise SessionFailed(
                f"{self._address.url} did not take the prompt within {_PROMPT_SECONDS:g} s; it may "
                "be talking to another caller"
            ) from None

    async def _receive(self, websocket: ClientConnection) -> None:
        while True:
            self._take(await websocket.recv())

    async def _send(self, websocket: ClientConnection) -> None:
        self._awake.set()
        with suppress(ConnectionClosed):
            while True:
                await self._awake.wait()
                self._awake.clear()
                while (message := self._next_frame()) is not None:
                    await websocket.send(message)
        await for_ever()

    def _next_frame(self) -> bytes | None:
        frame = self.session.take() if len(self._sent) < _MAX_FRAMES else None
        if frame is None:
            return None
        self._sent.append(frame.arrived)
        if not self._unheard:
            self._unheard_since = time.monotonic()
        self._unheard += 1
        return pack(Kind.AUDIO, self._writer.encode(frame.pcm))

    async def _oversee(self) -> None:
        """Count frames as dropped that the server has swallowed.

        Raises:
            SessionFailed: It swallows all.
        """
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            now = time.monotonic()
            # Few frames may just be on their way still, of a caller who has paused.
            if self._unheard > _MAX_FRAMES and now - self._unheard_since > _SILENT_SECONDS:
                raise SessionFailed(
                    f"{self._address.url} has sent no audio for {_SILENT_SECONDS:g} s"
                )
            self._forget(now - (_LOST_SECONDS if self._index else _SWALLOWED_SECONDS))

    def _forget(self, before: float) -> None:
        while self._sent and self._sent[0] < before:
            self._sent.popleft()
            self._forgotten += 1
            self.session.count_dropped(1)
            self._awake.set()  # there is room for the next frame

    def _take(self, message: str | bytes) -> None:
        try:
            if isinstance(message, str):
                raise BadMessage("a message is binary")
            self._told(*unpack(message))
        except (BadMessage, InvalidAudio) as error:
            raise SessionFailed(
                f"{self._address.url} does not follow NVIDIA's protocol: {error}"
            ) from error

    def _told(self, kind: Kind, payload: bytes) -> None:
        match kind:
            case Kind.HANDSHAKE if not self.session.ready:
                self.session.mark_ready()
            case Kind.AUDIO if not self.session.ready:
                raise BadMessage("audio came before the handshake")
            case Kind.AUDIO:
                self._hear(self._reader.decode(payload))
            case Kind.TEXT:
                self._text += payload.decode(errors="replace")
                if len(self._text) > _MAX_TEXT:
                    raise BadMessage(f"more than {_MAX_TEXT >> 10} KiB of text came with no audio")
            case Kind.ERROR:
                raise SessionFailed(f"{self._address.url}: {payload.decode(errors='replace')}")

    def _hear(self, pcm: Pcm) -> None:
        self._heard = np.concatenate([self._heard, pcm])
        while len(self._heard) >= FRAME_SAMPLES:
            frame, self._heard = np.split(self._heard, [FRAME_SAMPLES])
            self._answered(frame)

    def _answered(self, pcm: Pcm) -> None:
        now = time.monotonic()
        waited = now - self._sent.popleft() if self._sent else self._answered_late()
        text, self._text = self._text, ""
        answer = SessionFrame(
            self._index,
            pcm,
            text,
            ZERO_TOKEN,
            _UNKNOWN_CODES,
            _UNKNOWN_CODES,
            FrameTimings(queued_ms=0.0, step_ms=waited * 1e3),
        )
        self._index += 1
        self._unheard = 0
        self.session.receive(answer, waited)
        self._awake.set()

    def _answered_late(self) -> float:
        """A frame that was forgotten has an answer after all; returns how long that took."""
        if not self._forgotten:
            return 0.0
        self._forgotten -= 1
        self.session.count_dropped(-1)
        return _LOST_SECONDS


def query(session: RemoteSession) -> Mapping[str, object]:
    """The persona and the sampling as that protocol wants them: in the URL."""
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
