"""Words out of the inner monologue, which comes a piece at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pipecat_personaplex.config import FRAME_SECONDS

# How SentencePiece spells a character that its vocabulary lacks: its UTF-8 bytes, one a piece.
_BYTE_PIECES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")


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
        self._pieces: list[str] = []
        self._first = self._last = 0

    def push(self, index: int, piece: str) -> Word | None:
        """Take the piece of frame ``index``; the word that it brings to an end, if any."""
        if not piece:
            return None
        ended = self.flush() if piece[0].isspace() else None
        if not self._pieces:
            self._first = index
        self._pieces.append(piece)
        self._last = index
        return ended

    def flush(self) -> Word | None:
        """The word so far, if any: at the end of a conversation, or when the agent pauses."""
        text = _BYTE_PIECES.sub(_decoded, "".join(self._pieces)).strip()
        self._pieces.clear()
        if not text:
            return None
        return Word(text, _seconds(self._first), _seconds(self._last + 1))


def words_of(pieces: Iterable[str]) -> list[Word]:
    """All words of a conversation, given the piece of each frame from the first one on."""
    assembler = WordAssembler()
    words = [assembler.push(index, piece) for index, piece in enumerate(pieces)]
    words.append(assembler.flush())
    return [word for word in words if word is not None]


def _decoded(run: re.Match[str]) -> str:
    codes = run[0].replace("<0x", "").replace(">", "")
    return bytes.fromhex(codes).decode("utf-8", errors="replace")


def _seconds(index: int) -> float:
    # Rounded: 3 * 0.08 is 0.24000000000000002.
    return round(index * FRAME_SECONDS, 2)
