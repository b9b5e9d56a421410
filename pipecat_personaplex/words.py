"""Words of the inner monologue, which arrives piece by piece, and words to say."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from pipecat_personaplex.constants import FRAME_SECONDS

TURN_GAP_FRAMES = 10
"""Frames (80 ms) without text that end the agent's turn."""

# SentencePiece writes a character outside its vocabulary as UTF-8 bytes, one piece per byte.
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


_INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs"}  # Unicode's categories
_SYMBOLS = {"So", "Sk"}


def spoken_words(text: str) -> list[str]:
    """Split a text to say into words; those without a letter or a digit are left out.

    Emoji and invisible characters are removed: the tokeniser would write them as bytes, and a model
    that is given bytes says nothing for half a second.
    """
    words = ("".join(filter(is_visible_text, word)) for word in text.split())
    return [word for word in words if any(map(str.isalnum, word))]


def is_visible_text(character: str) -> bool:
    """Whether a character is neither an emoji, nor a part of one, nor invisible."""
    category = unicodedata.category(character)
    emoji = (category in _SYMBOLS and character >= "\u2000") or "\ufe00" <= character <= "\ufe0f"
    return category not in _INVISIBLE and not emoji


class PieceDecoder:
    """Decodes SentencePiece pieces to text; one character may take several byte pieces.

    Example::

        decoder = PieceDecoder()
        text = "".join(decoder.decode(piece) for piece in (" caf", "<0xC3>", "<0xA9>"))  # " café"
    """

    def __init__(self) -> None:
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def decode(self, piece: str) -> str:
        """Return the text that this piece completes; empty for padding or a partial character."""
        if not piece:
            return ""
        byte = _BYTE_PIECE.fullmatch(piece)
        if byte:
            return self._bytes.decode(bytes.fromhex(byte[1]))
        # A text piece ends a run of byte pieces; flush what is incomplete.
        return self.flush() + piece

    def flush(self) -> str:
        """End a partial character; returns U+FFFD if there is one, else an empty text."""
        return self._bytes.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the agent, with its punctuation.

    Attributes:
        word: Its text.
        start: Seconds from the start of the conversation to the frame of its first piece.
        end: Seconds to the end of the frame of its last piece; its sound may last longer.
    """

    word: str
    start: float
    end: float


class WordAssembler:
    """Joins the pieces of one conversation to words, frame by frame.

    A piece with a leading space starts a new word. An empty piece is padding and changes nothing.
    A word is complete when the next one starts.

    Example::

        assembler = WordAssembler()
        word = assembler.push(frame.index, frame.text)
    """

    def __init__(self) -> None:
        self._decoder = PieceDecoder()
        self._text = ""
        self._pieces = 0
        self._first = self._last = 0  # frame indices of the first and last piece

    def push(self, index: int, piece: str) -> Word | None:
        """Add the piece of frame ``index``; returns the word that it completes, if any."""
        if not piece:
            return None
        completed = self.flush() if piece[0].isspace() else None
        if not self._pieces:
            self._first = index
        self._text += self._decoder.decode(piece)
        self._pieces += 1
        self._last = index
        return completed

    def flush(self) -> Word | None:
        """Return the word so far, if any; call this at the end or when the agent pauses."""
        text = (self._text + self._decoder.flush()).strip()
        self._text, self._pieces = "", 0
        return Word(text, _seconds(self._first), _seconds(self._last + 1)) if text else None


def words_of(pieces: Iterable[str]) -> list[Word]:
    """Return all words of a conversation.

    Args:
        pieces: The piece of each frame, from the first frame on; empty for padding.
    """
    assembler = WordAssembler()
    words = [assembler.push(index, piece) for index, piece in enumerate(pieces)]
    words.append(assembler.flush())
    return [word for word in words if word is not None]


def _seconds(index: int) -> float:
    # Rounded: 3 * 0.08 is 0.24000000000000002.
    return round(index * FRAME_SECONDS, 2)
