"""The binary messages of ``/v1/session`` after ``open``: the history of a call to continue."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import Pcm, float_to_pcm16, pcm16_to_float
from pipecat_personaplex.constants import FRAME_SAMPLES, MAX_HISTORY_FRAMES, STREAMS
from pipecat_personaplex.errors import BadMessage, ConfigError
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.protocol.session_messages import (
    MAX_HISTORY_AUDIO_FRAMES,
    Open,
)

# The first byte of a message; audio of a running session has 1.
_TOKENS = 2
_AUDIO = 3
_TOKEN_DTYPE = np.dtype(">i2")
_PCM16 = np.dtype("<i2")
_TOKEN_BYTES = STREAMS * _TOKEN_DTYPE.itemsize
_AUDIO_BYTES = FRAME_SAMPLES * _PCM16.itemsize
# Frames of one message, so that it stays under MAX_MESSAGE_BYTES.
_MAX_TOKEN_FRAMES = 1_800
_MAX_AUDIO_FRAMES = 16


def bounded_history(history: CallHistory) -> CallHistory:
    """Return the newest part of a history that ``open`` may send.

    Raises:
        ConfigError: The arrays are not those of a ``CallHistory``.
    """
    tokens, caller = history.tokens, history.caller
    if tokens.dtype != np.int16 or tokens.ndim != 2 or tokens.shape[1] != STREAMS:
        raise ConfigError(
            f"the tokens of a history must be int16 [n, {STREAMS}], not {tokens.dtype} "
            f"{list(tokens.shape)}"
        )
    if caller.dtype != np.float32 or caller.ndim != 1 or caller.size % FRAME_SAMPLES:
        raise ConfigError(
            f"the caller's audio of a history must be float32 [m] of whole frames "
            f"({FRAME_SAMPLES} samples), not {caller.dtype} {list(caller.shape)}"
        )
    return CallHistory(
        history.tokens[-MAX_HISTORY_FRAMES:],
        history.caller[-MAX_HISTORY_AUDIO_FRAMES * FRAME_SAMPLES :],
    )


def pack_history(history: CallHistory) -> Iterator[bytes]:
    """Encode a history of at most the protocol's length as the messages that follow ``open``."""
    tokens = history.tokens.astype(_TOKEN_DTYPE)
    for start in range(0, len(tokens), _MAX_TOKEN_FRAMES):
        yield bytes((_TOKENS,)) + tokens[start : start + _MAX_TOKEN_FRAMES].tobytes()
    audio = float_to_pcm16(history.caller).astype(_PCM16).reshape(-1, FRAME_SAMPLES)
    for start in range(0, len(audio), _MAX_AUDIO_FRAMES):
        yield bytes((_AUDIO,)) + audio[start : start + _MAX_AUDIO_FRAMES].tobytes()


class HistoryReader:
    """Decodes the messages that follow ``open``.

    Args:
        message: The message ``open``, which says how many frames follow.

    Example::

        reader = HistoryReader(message)
        while not reader.complete:
            reader.accept(await socket.receive())
        history = reader.history
    """

    def __init__(self, message: Open):
        self._token_frames = message.history or 0
        self._audio_frames = message.history_audio or 0
        if self._audio_frames and not self._token_frames:
            raise BadMessage("history_audio needs history")
        # Bounded by the limits of ``Open``.
        self._tokens: list[npt.NDArray[np.int16]] = []
        self._audio: list[Pcm] = []

    @property
    def complete(self) -> bool:
        """Whether every frame has arrived."""
        return not (self._token_frames or self._audio_frames)

    @property
    def history(self) -> CallHistory | None:
        """The call to continue; None for a new one."""
        if not self._tokens:
            return None
        audio = self._audio or [np.empty(0, np.float32)]
        return CallHistory(np.concatenate(self._tokens), np.concatenate(audio))

    def accept(self, message: str | bytes) -> None:
        """Decode the next message.

        Raises:
            BadMessage: It is not the next part of the history, or a token is negative.
        """
        if isinstance(message, str):
            raise BadMessage("the history of the call comes next, not a text message")
        if self._token_frames:
            self._token_frames -= self._accept_tokens(message)
        else:
            self._audio_frames -= self._accept_audio(message)

    def _accept_tokens(self, message: bytes) -> int:
        most = min(self._token_frames, _MAX_TOKEN_FRAMES)
        frames = _count_frames(message, _TOKENS, _TOKEN_BYTES, most)
        tokens = np.frombuffer(message, _TOKEN_DTYPE, offset=1).astype(np.int16)
        if tokens.min() < 0:
            raise BadMessage("a token of a history must not be negative")
        self._tokens.append(tokens.reshape(frames, STREAMS))
        return frames

    def _accept_audio(self, message: bytes) -> int:
        most = min(self._audio_frames, _MAX_AUDIO_FRAMES)
        frames = _count_frames(message, _AUDIO, _AUDIO_BYTES, most)
        self._audio.append(pcm16_to_float(np.frombuffer(message, _PCM16, offset=1)))
        return frames


def _count_frames(message: bytes, kind: int, frame_bytes: int, most: int) -> int:
    if not message or message[0] != kind:
        raise BadMessage(
            f"a part of the history that begins with {kind} comes next, not "
            f"{message[0] if message else 'an empty message'}"
        )
    frames, rest = divmod(len(message) - 1, frame_bytes)
    if rest or not 1 <= frames <= most:
        raise BadMessage(
            f"a part of the history must have 1 to {most} frames of {frame_bytes} bytes after its "
            f"kind, not {len(message) - 1} bytes"
        )
    return frames
