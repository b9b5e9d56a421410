"""The record of a call at its client, from which another server can continue the call."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import (
    AGENT_CODES,
    FRAME_SAMPLES,
    MAX_HISTORY_FRAMES,
    STREAMS,
    TEXT,
    USER_CODES,
)
from pipecat_personaplex.interface import CallHistory, SessionFrame
from pipecat_personaplex.protocol.session_messages import MAX_HISTORY_AUDIO_FRAMES


class CallRecord:
    """The newest tokens of a call, and the newest audio of its caller; safe for use on any thread.

    Bounded: 3,000 frames of 17 tokens (100 kB) and 32 frames of audio (250 kB).

    Args:
        history: The call so far; None for a new one.
    """

    def __init__(self, history: CallHistory | None = None):
        self._lock = threading.Lock()
        self._tokens: deque[npt.NDArray[np.int16]] = deque(maxlen=MAX_HISTORY_FRAMES)
        self._caller: deque[Pcm] = deque(maxlen=MAX_HISTORY_AUDIO_FRAMES)
        if history is not None:
            self._tokens.extend(history.tokens)
            self._caller.extend(history.caller.reshape(-1, FRAME_SAMPLES))

    @property
    def empty(self) -> bool:
        """Whether the call has no frames yet."""
        return not self._tokens

    def add(self, frame: SessionFrame, caller: Pcm) -> None:
        """Append an output frame and the caller's audio of the same frame, float32 [1920]."""
        column = np.empty(STREAMS, dtype=np.int64)
        column[TEXT] = frame.text_token
        column[AGENT_CODES] = frame.agent_codes
        column[USER_CODES] = frame.user_codes
        with self._lock:
            # A text token that does not fit, from a hostile server, wraps; other servers check.
            self._tokens.append(column.astype(np.int16))
            self._caller.append(caller)

    def snapshot(self) -> CallHistory:
        """The call so far."""
        with self._lock:
            tokens, caller = list(self._tokens), list(self._caller)
        return CallHistory(
            np.array(tokens, dtype=np.int16).reshape(-1, STREAMS),
            np.concatenate([np.empty(0, np.float32), *caller]),
        )
