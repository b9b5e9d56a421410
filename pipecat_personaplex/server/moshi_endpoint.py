"""``/api/chat``: the protocol of NVIDIA's server, for its existing clients."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from loguru import logger
from starlette.websockets import WebSocket

from pipecat_personaplex.async_session import AsyncSession, Ended, Ready
from pipecat_personaplex.config import Persona, SamplingParams
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
from pipecat_personaplex.protocol.ogg_opus import OggOpusMeter
from pipecat_personaplex.server.admitted_session import AdmittedSession, open_admitted_session
from pipecat_personaplex.server.auth import ApiClient
from pipecat_personaplex.server.state import ServerState
from pipecat_personaplex.server.websocket import (
    UNSUPPORTED,
    ClientSocket,
    Disconnected,
    close_code,
    report_defect,
    run_duplex,
)

_VOICE_SUFFIXES = (".pt", ".safetensors", ".wav")
_RANDOM_SEED = -1
_SEEDS = 1 << 63

_N = TypeVar("_N", int, float)


def moshi_endpoint(state: ServerState) -> Callable[[WebSocket], Awaitable[None]]:
    """Return the endpoint of a server; ``app`` has checked the WebSockets that it gets."""

    async def endpoint(websocket: WebSocket) -> None:
        with suppress(Disconnected):
            await _Connection(websocket, state).serve()

    return endpoint


def parse_query(query: Mapping[str, str], voices: Sequence[str]) -> tuple[Persona, SamplingParams]:
    """Read persona and sampling from a URL's query; unknown parameters are ignored.

    Args:
        query: The parameters.
        voices: Names of the engine's voices; the first is the default.

    Raises:
        ConfigError: A value is not valid.
        VoiceNotFound: The engine does not have this voice.
    """
    seed = _number(query, "seed", int, _RANDOM_SEED)
    default = SamplingParams()
    sampling = SamplingParams(
        seed=secrets.randbelow(_SEEDS) if seed == _RANDOM_SEED else seed,
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


def _voice(requested: str, voices: Sequence[str]) -> str:
    if not requested and voices:
        return voices[0]
    # Clients send the file names of NVIDIA's release. The names are looked up, never opened.
    name = requested
    if requested not in voices and requested.lower().endswith(_VOICE_SUFFIXES):
        name = requested.rpartition(".")[0]
    if name in voices:
        return name
    raise VoiceNotFound(requested[:100], voices)


class _Connection:
    """A client's connection and its session, which ends with it."""

    def __init__(self, websocket: WebSocket, state: ServerState):
        self._query = websocket.query_params
        self._client: ApiClient = websocket.state.client
        self._state = state
        self._socket = ClientSocket(websocket)
        self._text_received = False

    async def serve(self) -> None:
        """Serve the connection; errors become an error message and a close code.

        Raises:
            Disconnected: The client has disconnected.
        """
        await self._socket.accept()
        try:
            reader, writer = OggOpusReader(), OggOpusWriter()
            admitted = self._open()
        except PersonaPlexError as error:
            self._state.refusals.record(error, client=self._client.label)
            await self._conclude(error)
            return
        except Exception as error:
            await self._conclude(report_defect(error, logger.bind(client=self._client.label)))
            return
        session = admitted.session
        try:
            await run_duplex(self._listen(admitted, reader), self._speak(session, writer))
        except Exception as error:
            failure = report_defect(error, admitted.log)
            session.end(failure)
            await self._conclude(failure)
        finally:
            session.end(None, reason="the client disconnected")

    def _open(self) -> AdmittedSession:
        persona, sampling = parse_query(self._query, self._state.engine.voices)
        return open_admitted_session(self._state, self._client, MOSHI_PATH, persona, sampling)

    async def _speak(self, session: AsyncSession, writer: OggOpusWriter) -> None:
        while True:
            match await session.next():
                case Ready():
                    await self._socket.send(pack(Kind.HANDSHAKE))
                case SessionFrame() as frame:
                    if frame.text:
                        await self._socket.send(pack(Kind.TEXT, frame.text.encode()))
                    await self._socket.send(pack(Kind.AUDIO, writer.encode(frame.pcm)))
                case Ended(error=error):
                    await self._conclude(error)
                    return

    async def _conclude(self, error: PersonaPlexError | None) -> None:
        """Send the error, if any, and close the connection."""
        self._state.count_invalid_message(error)
        if error is not None:
            await self._socket.send(pack(Kind.ERROR, str(error).encode()))
        await self._socket.close(UNSUPPORTED if self._text_received else close_code(error))

    async def _listen(self, admitted: AdmittedSession, reader: OggOpusReader) -> None:
        meter = OggOpusMeter()
        try:
            while True:
                kind, payload = self._unpack(await self._socket.receive())
                # NVIDIA's server ignores the other kinds of messages, too.
                if kind is not Kind.AUDIO:
                    continue
                # Before the audio is decoded: that alone could delay every other session.
                admitted.limits.consume(meter.feed(payload))
                for pcm in reader.decode_slices(payload):
                    admitted.limits.touch()
                    admitted.session.engine_session.push(pcm)
                    await asyncio.sleep(0)  # Decoding a long message must not delay the others.
        except EngineError:  # The session has ended; its Ended event is in the queue.
            pass
        except PersonaPlexError as error:
            admitted.session.end(error)

    def _unpack(self, message: str | bytes) -> tuple[Kind, bytes]:
        if isinstance(message, str):
            self._text_received = True
            raise BadMessage("messages are binary here: a byte for the kind, then the payload")
        return unpack(message)
