"""Makes what a language model writes fit for being read out word for word."""

from __future__ import annotations

import re
import unicodedata

from pipecat_personaplex.service.delegation.arithmetic import read_operators
from pipecat_personaplex.words import is_visible_text

MAX_WORDS = 60
"""Words of one answer that are spoken: about 25 s."""

_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_URL = re.compile(r"(?:https?://|www\.)\S+", re.I)
_CODE_FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
# Headings, quotes, bullets at the start of a line.
_LINE_START = re.compile(r"^\s*(?:#{1,6}\s+|>+\s*|[-*+•]\s+)")
# One alone may be an answer: "12. Anything else?"
_LIST_NUMBER = re.compile(r"^\s*\d{1,2}[.)]\s+")
_TABLE_RULE = re.compile(r"^[\s:|-]{3,}$")
# As in "opening_hours": a gap, while the underscores of an emphasis stand at the edge of a word.
_WORD_GAP = re.compile(r"(?<=[^\W_])_+(?=[^\W_])")
_MARKS = re.compile(r"(\*\*|__|~~|`)")
_EMPHASIS = re.compile(r"(?<![\w*])[*_](?=\S)([^*_\n]+?)(?<=\S)[*_](?![\w*])")
# A sentence ends with its mark and a space; "3.5" and "a.m." do not end one before a small letter.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+(?=[^a-z])")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|No|vs|approx|e\.g|i\.e)\.$", re.I)
# Typographic quotes, dashes, minus and spaces, and the separators of a table.
_TYPOGRAPHY = str.maketrans(
    "\u201c\u201d\u201e\u2018\u2019\u2013\u2014\u2212\u00a0|", '"""\'\'-,- ,'
)
# "20 °C", "-3°F", "180°".
_DEGREES = re.compile(r"\s?°\s?([CF]\b)?")
_SCALES = {"C": " degrees Celsius", "F": " degrees Fahrenheit"}


def speakable(text: str, max_words: int = MAX_WORDS) -> tuple[list[str], str]:
    """Split a text into sentences to speak, and what is too much.

    Markdown, addresses, code blocks, emoji and control characters are removed, lines are joined.
    Operators such as ``*`` and ``<`` between values become words, see ``read_operators``; ``&``
    between spaces becomes "and".

    Args:
        text: What a language model wrote, of any length.
        max_words: Sentences beyond this many words are left out. A first sentence that is longer is
            cut after this many words.

    Returns:
        The sentences, empty if nothing of the text can be spoken; and what was left out, empty if
        nothing.
    """
    sentences = [each for block in _plain(text) for each in _sentences(block)]
    words = 0
    for index, sentence in enumerate(sentences):
        spoken = sentence.split()
        if words + len(spoken) > max_words:
            rest = sentences[index:]
            if index > 0:
                return sentences[:index], " ".join(rest)
            left_out = " ".join([*spoken[max_words:], *rest[1:]])
            return [" ".join(spoken[:max_words]).rstrip(",;:-") + "."], left_out
        words += len(spoken)
    return sentences, ""


def _plain(text: str) -> list[str]:
    """The paragraphs, items and table rows of a text, each on one line and without marks."""
    text = _CODE_FENCE.sub("\n\n", text)
    text = _LINK.sub(r"\1", text)
    text = read_operators(_WORD_GAP.sub(" ", _URL.sub("", text)))
    text = _TAG.sub(" ", text)
    text = _EMPHASIS.sub(r"\1", _MARKS.sub("", text))
    blocks: list[str] = [""]
    lines = text.splitlines()
    is_list = sum(_LIST_NUMBER.match(line) is not None for line in lines) > 1
    for line in lines:
        content = (_LIST_NUMBER if is_list and _LIST_NUMBER.match(line) else _LINE_START).sub(
            "", line
        )
        own = content != line or "|" in line  # a heading, an item, a row of a table
        if own or not content.strip() or _TABLE_RULE.match(line):
            blocks.append("")
        blocks[-1] += f" {'' if _TABLE_RULE.match(line) else content.strip().strip('|')}"
        if line.lstrip().startswith("#"):
            blocks.append("")
    return [plain for block in blocks if (plain := _spoken(block))]


def _spoken(block: str) -> str:
    block = _DEGREES.sub(lambda sign: _SCALES.get(sign[1], " degrees"), block)
    spoken = "".join(char for char in block.translate(_TYPOGRAPHY) if _is_spoken(char))
    spoken = re.sub(r"\(\s*\)|\[\s*\]", "", spoken)
    spoken = re.sub(r"\s+", " ", spoken).replace(" & ", " and ")
    spoken = re.sub(r"\s+([.,!?;:])", r"\1", spoken).strip()
    return spoken if not spoken or spoken[-1] in ".!?,;:\"')" else f"{spoken}."


def _is_spoken(char: str) -> bool:
    if not is_visible_text(char) or char in "#*_~<>{}\\":
        return False
    return unicodedata.category(char) not in ("So", "Sk")  # other symbols, such as a copyright sign


def _sentences(text: str) -> list[str]:
    found: list[str] = []
    for part in _SENTENCE_END.split(text):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += f" {part}"
        elif re.search(r"\w", part):
            found.append(part.strip())
    return found
