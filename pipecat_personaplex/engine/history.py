"""The newest frames of a call: from them its state can be computed again, here or elsewhere.

It does not import torch.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import (
    AGENT_CODES,
    CODEBOOKS,
    FRAME_SAMPLES,
    MAX_HISTORY_FRAMES,
    STREAMS,
    TEXT,
    USER_CODES,
)
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import CallHistory, SessionFrame

if TYPE_CHECKING:
    from pipecat_personaplex.models.config import LMConfig

WARM_UP_FRAMES = 32
"""Frames of both speakers' sound that bring a new codec close to the state of a running one."""

Tokens = npt.NDArray[np.int16]
"""Text token, 8 agent codes and 8 user codes of each frame, int16 [n, 17]."""


class History:
    """The tokens of a session's newest frames, and the newest audio of its caller.

    The model thread adds frames; any thread may read.

    Args:
        window: Frames to store. Older ones are overwritten.
        past: The call that the session continues, if any. Its frames come first.

    Attributes:
        frames: Frames added so far, those of the past call included.
    """

    def __init__(self, window: int, past: CallHistory | None = None):
        self._lock = threading.Lock()
        self._ring: Tokens = np.empty((window, STREAMS), dtype=np.int16)  # frame f: f % window
        self._caller: deque[Pcm] = deque(maxlen=WARM_UP_FRAMES)  # [1920] each
        self.frames = 0
        if past is not None:
            for row in past.tokens[-window:]:
                self._ring[self.frames] = row
                self.frames += 1
            self._caller.extend(past.caller.reshape(-1, FRAME_SAMPLES)[-WARM_UP_FRAMES:])

    def renew_lock(self) -> None:
        """Replace the lock: a fork may have copied it in its locked state."""
        self._lock = threading.Lock()

    @property
    def oldest(self) -> int:
        """Number of the oldest stored frame."""
        return max(0, self.frames - len(self._ring))

    def add(self, frame: SessionFrame, caller: Pcm) -> None:
        """Append a frame.

        Args:
            frame: The frame.
            caller: The caller's audio from which it was computed, float32 [1920]. It is stored
                without a copy.
        """
        with self._lock:
            row = self._ring[self.frames % len(self._ring)]  # [17]
            row[TEXT] = frame.text_token
            row[AGENT_CODES] = frame.agent_codes
            row[USER_CODES] = frame.user_codes
            self._caller.append(caller)
            self.frames += 1

    def since(self, first: int) -> Tokens:
        """The tokens of all frames from number ``first`` on, a copy, int16 [n, 17].

        ``first`` must not be older than ``oldest``.
        """
        with self._lock:
            assert first >= self.oldest
            return self._ring[np.arange(first, self.frames) % len(self._ring)]

    def snapshot(self) -> CallHistory:
        """A copy that does not change any more."""
        with self._lock:
            tokens = self._ring[np.arange(self.oldest, self.frames) % len(self._ring)]
            caller = [np.zeros(0, dtype=np.float32), *self._caller]
        return CallHistory(tokens, np.concatenate(caller))


def checked_history(history: CallHistory, lm: LMConfig) -> CallHistory:
    """Validate a history that came from elsewhere, and copy it.

    Args:
        history: The history.
        lm: The model, for its vocabularies and its window.

    Raises:
        ConfigError: It is not a history of this model.
    """
    most = max(lm.window, MAX_HISTORY_FRAMES)
    if not isinstance(history, CallHistory):
        raise ConfigError(f"history must be a CallHistory, not {type(history).__name__}")
    tokens, caller = history.tokens, history.caller
    if (
        not isinstance(tokens, np.ndarray)
        or tokens.dtype != np.int16
        or tokens.ndim != 2
        or tokens.shape[1] != STREAMS
        or len(tokens) > most
    ):
        raise ConfigError(
            f"history.tokens must be an int16 array [n, {STREAMS}] of at most {most} frames, not "
            f"{_described(tokens)}"
        )
    if (
        not isinstance(caller, np.ndarray)
        or caller.dtype != np.float32
        or caller.ndim != 1
        or len(caller) % FRAME_SAMPLES
        or len(caller) > most * FRAME_SAMPLES
    ):
        raise ConfigError(
            f"history.caller must be a float32 array [m] of whole frames ({FRAME_SAMPLES} samples "
            f"each), at most {most}, not {_described(caller)}"
        )
    tokens = tokens.copy()
    caller = caller[-WARM_UP_FRAMES * FRAME_SAMPLES :].copy()
    sizes = np.array([lm.text_card, *[lm.card] * 2 * CODEBOOKS])  # [17]
    if ((tokens < 0) | (tokens >= sizes)).any():
        raise ConfigError(
            f"history.tokens must be text tokens from 0 to {lm.text_card - 1} and audio codes from "
            f"0 to {lm.card - 1}; is the history of another model?"
        )
    if not np.isfinite(caller).all():
        raise ConfigError("history.caller must be finite; it contains NaN or infinite samples")
    return CallHistory(tokens, np.clip(caller, -1.0, 1.0))


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
