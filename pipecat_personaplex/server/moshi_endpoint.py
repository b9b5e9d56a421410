"""``/api/chat``: the protocol of NVIDIA's server, for clients that exist already."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from starlette.websockets import WebSocket

from pipecat_personaplex.async_session import AsyncSession, Ended, Ready
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import (
    BadMessage,
    ConfigError,
    EngineError,
    PersonaPlexError,
    VoiceNotFound,
)
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.protocol.moshi import (
    MOSHI_PATH,
    Kind,
    OggOpusReader,
    OggOpusWriter,
    pack,
    unpack,
)
from pipecat_personaplex.server.limits import Limits, open_admitted_session
from pipecat_personaplex.server.state import ServerState
from pipecat_personaplex.server.websocket import (
    UNSUPPORTED,
    ClientSocket,
    Disconnected,
    close_code,
    our_failure,
    run_duplex,
)

_VOICE_SUFFIXES = (".pt", ".safetensors", ".wav")
_ANY_SEED = -1
_SEEDS = 1 << 63

_N = TypeVar("_N", int, float)


def moshi_endpoint(state: ServerState) -> Callable[[WebSocket], Awaitable[None]]:
    """The endpoint of a server: takes WebSockets whose guest has been let in."""

    async def endpoint(websocket: WebSocket) -> None:
        with suppress(Disconnected):
            await _Chat(websocket, state).serve()

    return endpoint


def parse_query(query: Mapping[str, str], voices: Sequence[str]) -> tuple[Persona, SamplingParams]:
    """What a client asks for in its URL; parameters that are not ours are ignored.

    Args:
        query: The parameters.
        voices: The names there are; the first is for a client that names none.

    Raises:
        ConfigError: A value cannot be.
        VoiceNotFound: There is no such voice.
    """
    seed = _number(query, "seed", int, _ANY_SEED)
    default = SamplingParams()
    sampling = SamplingParams(
        seed=secrets.randbelow(_SEEDS) if seed == _ANY_SEED else seed,
        temperature_audio=_number(query, "audio_temperature", float, default.temperature_audio),
        temperature_text=_number(query, "text_temperature", float, default.temperature_text),
        top_k_audio=_number(query, "audio_topk", int, default.top_k_audio),
        top_k_text=_number(query, "text_topk", int, default.top_k_text),
    )
    voice = _voice(query.get("voice_prompt", ""), voices)
    return Persona(voice, query.get("text_prompt", "")), sampling


def _number(query: Mapping[str, str], name: str, kind: type[_N], default: _N) -> _N:
    text = query.get(name)
    if not text:
        return default
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{name} must be a number, not {text[:40]!r}") from None


def _voice(asked: str, voices: Sequence[str]) -> str:
    if not asked and voices:
        return voices[0]
    # Clients send the file names of NVIDIA's release. They are looked up, never opened.
    names = [asked, *(asked.removesuffix(suffix) for suffix in _VOICE_SUFFIXES)]
    for name in names:
        if name in voices:
            return name
    raise VoiceNotFound(asked[:100], voices)


class _NotBinary(BadMessage):
    """A text message."""


class _Chat:
    """A client's conversation, as long as its connection."""

    def __init__(self, websocket: WebSocket, state: ServerState):
        self._websocket = websocket
        self._state = state
        self._wire = ClientSocket(websocket)

    async def serve(self) -> None:
        """Serve it; what goes wrong becomes an error message and a close code.

        Raises:
            Disconnected: The client is.
        """
        await self._wire.accept()
        try:
            reader, writer = OggOpusReader(), OggOpusWriter()
            bridge, limits = self._open()
        except PersonaPlexError as error:
            await self._conclude(error)
            return
        except Exception as error:
            await self._conclude(our_failure(MOSHI_PATH, error))
            return
        try:
            await run_duplex(self._listen(bridge, limits, reader), self._speak(bridge, writer))
        except Exception as error:
            await self._conclude(our_failure(MOSHI_PATH, error))
        finally:
            bridge.end(None)

    def _open(self) -> tuple[AsyncSession, Limits]:
        engine, query = self._state.engine, self._websocket.query_params
        persona, sampling = parse_query(query, engine.voices)
        opened = open_admitted_session(self._state, self._websocket.state.guest, persona, sampling)
        self._state.metrics.sessions_opened.labels(MOSHI_PATH).inc()
        return opened

    async def _speak(self, bridge: AsyncSession, writer: OggOpusWriter) -> None:
        while True:
            match await bridge.next():
                case Ready():
                    await self._wire.send(pack(Kind.HANDSHAKE))
                case SessionFrame() as frame:
                    if frame.text:
                        await self._wire.send(pack(Kind.TEXT, frame.text.encode()))
                    await self._wire.send(pack(Kind.AUDIO, writer.encode(frame.pcm)))
                case Ended(error):
                    await self._conclude(error)
                    return

    async def _conclude(self, error: PersonaPlexError | None) -> None:
        self._state.count_refused(error)
        if error is not None:
            await self._wire.send(pack(Kind.ERROR, str(error).encode()))
        code = UNSUPPORTED if isinstance(error, _NotBinary) else close_code(error)
        await self._wire.close(code)

    async def _listen(self, bridge: AsyncSession, limits: Limits, reader: OggOpusReader) -> None:
        try:
            while True:
                kind, payload = self._unpack(await self._wire.receive())
                # What else clients send asks for nothing that NVIDIA's server does.
                if kind is Kind.AUDIO and len(pcm := reader.decode(payload)):
                    limits.check_pace(len(pcm) / SAMPLE_RATE)
                    limits.heard()
                    bridge.session.push(pcm)
        except EngineError:  # the session is over; its end is on the way
            pass
        except PersonaPlexError as error:
            bridge.end(error)

    def _unpack(self, message: str | bytes) -> tuple[Kind, bytes]:
        if isinstance(message, str):
            raise _NotBinary("messages are binary here: a byte for the kind, then the payload")
        return unpack(message)
