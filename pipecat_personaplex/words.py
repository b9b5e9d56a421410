"""Words out of the inner monologue, which comes a piece at a time."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipecat_personaplex.constants import FRAME_SECONDS

TURN_GAP_FRAMES = 10
"""Frames (80 ms) without text that end the agent's turn."""

# How SentencePiece spells a character that its vocabulary lacks: its UTF-8 bytes, one a piece.
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class PieceDecoder:
    """Text out of pieces, of which several may spell one character."""

    def __init__(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, piece: str) -> str:
        """The text that a piece completes; nothing inside a character, or for padding."""
        if not piece:
            return ""
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte:
            return self._bytes.decode(bytes.fromhex(byte[1]))
        # Anything else ends a run of bytes, whole or not.
        return self.flush() + piece

    def flush(self) -> str:
        """What is left of a character that was not completed."""
        return self._bytes.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class Word:
    """A word that the agent said, punctuation included.

    Attributes:
        word: Its text.
        start: Seconds from the conversation's start to the frame of its first piece.
        end: Seconds to the end of the frame of its last piece; the voice may take longer.
    """

    word: str
    start: float
    end: float


class WordAssembler:
    """Puts one conversation's pieces together, frame by frame.

    A piece with a leading space starts a new word; an empty one is padding and changes nothing.
    A word is known to be whole when the next one starts.
    """

    def __init__(self) -> None:
        self._decoder = PieceDecoder()
        self._text = ""
        self._pieces = 0
        self._first = self._last = 0

    def push(self, index: int, piece: str) -> Word | None:
        """Take the piece of frame ``index``; the word that it brings to an end, if any."""
        if not piece:
            return None
        ended = self.flush() if piece[0].isspace() else None
        if not self._pieces:
            self._first = index
        self._text += self._decoder.decode(piece)
        self._pieces += 1
        self._last = index
        return ended

    def flush(self) -> Word | None:
        """The word so far, if any: at the end of a conversation, or when the agent pauses."""
        text = (self._text + self._decoder.flush()).strip()
        self._text, self._pieces = "", 0
        return Word(text, _seconds(self._first), _seconds(self._last + 1)) if text else None


def words_of(pieces: Iterable[str]) -> list[Word]:
    """All words of a conversation, given the piece of each frame from the first one on."""
    assembler = WordAssembler()
    words = [assembler.push(index, piece) for index, piece in enumerate(pieces)]
    words.append(assembler.flush())
    return [word for word in words if word is not None]


def _seconds(index: int) -> float:
    # Rounded: 3 * 0.08 is 0.24000000000000002.
    return round(index * FRAME_SECONDS, 2)
