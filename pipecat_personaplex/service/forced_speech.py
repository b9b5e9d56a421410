"""Forced texts that the agent has still to speak."""

from __future__ import annotations

import unicodedata
from collections import deque

from pipecat_personaplex.words import TURN_GAP_FRAMES, PieceDecoder

# Frames that a word takes in addition to one per byte: one before it, one for its space, and the
# pause after it.
_WORD_OVERHEAD_FRAMES = 6
# For frames in flight, the gap that ends the turn, and words that the model adds by itself.
_SLACK_FRAMES = 63


def max_frames(text: str) -> int:
    """Upper bound of the frames (80 ms) that speaking a text takes.

    Each frame speaks one token, and a token covers at least one byte.
    """
    words = _decomposed(text).split()
    return sum(len(word.encode()) + _WORD_OVERHEAD_FRAMES for word in words)


class ForcedSpeech:
    """Tracks the forced texts of one session until they are spoken and their turn has ended.

    The texts are matched against the inner monologue, without spaces and with characters
    decomposed (NFKD). There they appear without a break, possibly after words of the model's own.
    Their turn ends with a gap, as every turn does. A deadline in frames bounds the wait: if the
    texts never appear, or the model does not stop talking, they count as over.
    """

    def __init__(self) -> None:
        self._decoder = PieceDecoder()
        self._texts: deque[str] = deque()
        self._matched = 0  # characters of the first text
        self._quiet_frames = 0
        self._frames_left = 0

    @property
    def frames_left(self) -> int:
        """Frames until the texts count as over at the latest; 0 once they are."""
        return self._frames_left

    def expect(self, text: str) -> None:
        """Track a text, after the texts before it."""
        letters = _letters(text)
        if not letters:
            return
        if not self._frames_left:
            self._decoder = PieceDecoder()
            self._texts.clear()
            self._matched = self._quiet_frames = 0
            self._frames_left = _SLACK_FRAMES
        self._texts.append(letters)
        self._frames_left += max_frames(text)

    def push(self, piece: str) -> None:
        """Add the text piece of one model frame; it is empty for padding."""
        if not self._frames_left:
            return
        self._frames_left -= 1
        self._quiet_frames = 0 if piece else self._quiet_frames + 1
        self._match(_letters(self._decoder.decode(piece)))
        if not self._texts and self._quiet_frames >= TURN_GAP_FRAMES:
            self._frames_left = 0

    def _match(self, letters: str) -> None:
        if not letters or not self._texts:
            return
        text = self._texts[0]
        if not text.startswith(letters, self._matched):
            self._matched = 0  # the words only began like the text; match from its start
        if text.startswith(letters, self._matched):
            self._matched += len(letters)
        if self._matched == len(text):
            self._texts.popleft()
            self._matched = 0


def _decomposed(text: str) -> str:
    """Compatibility decomposition: one form for all ways to encode the same text."""
    return unicodedata.normalize("NFKD", text)


def _letters(text: str) -> str:
    """The text decomposed and without white space."""
    return "".join(_decomposed(text).split())
