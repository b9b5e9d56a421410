"""What the agent was told to say, and whether it has said it."""

from __future__ import annotations

import unicodedata
from collections import deque

from pipecat_personaplex.words import TURN_GAP_FRAMES, PieceDecoder

# Of a word, beside its characters: one before it, one for its space, and the pause after it.
_BESIDE_FRAMES = 6
# For frames that were on their way already, the turn's end, and what the model adds by itself.
_SLACK_FRAMES = 63


def most_frames(text: str) -> int:
    """Frames (80 ms) that are more than saying a text takes: a token each, a byte at the least."""
    return sum(len(word.encode()) + _BESIDE_FRAMES for word in _decomposed(text).split())


class ForcedSpeech:
    """Follows the words that one session was told to say, until their turn is over.

    They are looked for in the inner monologue, where they come in a row and as they were written,
    spaces and the composition of characters aside; the model's own words may come before. As any
    turn, theirs ends with a gap. No longer is waited than they can take: words that never come,
    or a model that talks on, are over then.
    """

    def __init__(self) -> None:
        self._decoder = PieceDecoder()
        self._texts: deque[str] = deque()
        self._said = 0  # characters of the first
        self._quiet_frames = 0
        self._frames_left = 0

    @property
    def frames_left(self) -> int:
        """Frames after which it is over at the latest; 0 once it is."""
        return self._frames_left

    def expect(self, text: str) -> None:
        """Look for a text, after those before it."""
        letters = "".join(_decomposed(text).split())
        if not letters:
            return
        if not self._frames_left:
            self._decoder = PieceDecoder()
            self._texts.clear()
            self._said = self._quiet_frames = 0
            self._frames_left = _SLACK_FRAMES
        self._texts.append(letters)
        self._frames_left += most_frames(text)

    def push(self, piece: str) -> None:
        """Take one model frame's piece, empty for padding."""
        if not self._frames_left:
            return
        self._frames_left -= 1
        self._quiet_frames = 0 if piece else self._quiet_frames + 1
        self._find("".join(_decomposed(self._decoder.decode(piece)).split()))
        if not self._texts and self._quiet_frames >= TURN_GAP_FRAMES:
            self._frames_left = 0

    def _find(self, letters: str) -> None:
        if not letters or not self._texts:
            return
        text = self._texts[0]
        if not text.startswith(letters, self._said):
            self._said = 0  # it only began like this
        if text.startswith(letters, self._said):
            self._said += len(letters)
        if self._said == len(text):
            self._texts.popleft()
            self._said = 0


def _decomposed(text: str) -> str:
    """Text in the one form that all ways of writing it share."""
    return unicodedata.normalize("NFKD", text)
