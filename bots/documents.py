"""Passages of a folder's text files that match a question: SQLite's full-text search."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipecat_personaplex.errors import ConfigError

_SUFFIXES = {".txt", ".md", ".rst"}
_PASSAGE_WORDS = 120
_MAX_FILES = 5_000
_MAX_FILE_BYTES = 5_000_000

# Words that stand in most questions and say nothing of their subject.
_COMMON = frozenset(
    "a an and any are at be can did do does for from has have how i in is it its me my of on or "
    "our please tell that the their them there they this to was we what when where which who why "
    "will with you your about".split()
)


@dataclass(frozen=True)
class Passage:
    """A part of a file: at most about 120 words, whole paragraphs where that is possible."""

    file: str
    text: str


class Documents:
    """The text files of a folder and its subfolders, searchable by words.

    The index is in memory and is built once: files that change later need a restart. Passages are
    ranked by BM25; words match in all their forms (``opening`` finds ``opened``).

    Args:
        folder: Contains ``.txt``, ``.md`` and ``.rst`` files, in UTF-8.

    Raises:
        ConfigError: There is no such folder, or it contains no text.

    Example::

        documents = Documents(Path("handbook"))
        print(documents.search("How long is the warranty?", 3))
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise ConfigError(f"--documents {folder} is not a folder")
        self._lock = threading.Lock()
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            self._index.execute(
                "CREATE VIRTUAL TABLE passages USING fts5 "
                "(text, file UNINDEXED, tokenize = 'porter unicode61 remove_diacritics 2')"
            )
        except sqlite3.OperationalError as error:
            self._index.close()
            raise ConfigError(f"--documents needs an SQLite with FTS5: {error}") from None
        rows = ((passage.text, passage.file) for passage in _read(folder))
        self._index.executemany("INSERT INTO passages VALUES (?, ?)", rows)
        self.count = self._index.execute("SELECT count(*) FROM passages").fetchone()[0]
        if not self.count:
            self._index.close()
            raise ConfigError(f"--documents {folder} contains no {', '.join(sorted(_SUFFIXES))}")

    def search(self, question: str, count: int) -> list[Passage]:
        """The passages that match a question best, the best first; empty if none does."""
        words = re.findall(r"\w+", question.lower())
        # Quoted: a word such as "not" is an operator otherwise.
        terms = [f'"{word}"' for word in words if word not in _COMMON]
        if not terms:
            return []
        with self._lock:
            rows = self._index.execute(
                "SELECT file, text FROM passages WHERE passages MATCH ? "
                "ORDER BY bm25(passages), rowid LIMIT ?",
                (" OR ".join(terms), count),
            ).fetchall()
        return [Passage(*row) for row in rows]

    def close(self) -> None:
        """Drop the index."""
        self._index.close()


def _read(folder: Path) -> Iterator[Passage]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if len(paths) > _MAX_FILES:
        raise ConfigError(f"--documents {folder} contains more than {_MAX_FILES} files")
    for path in paths:
        try:
            if not path.is_file():
                continue
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ConfigError(f"--documents: {path} is larger than {_MAX_FILE_BYTES} bytes")
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ConfigError(f"--documents: {path}: {error.strerror}") from None
        for passage in split_passages(text):
            yield Passage(path.relative_to(folder).as_posix(), passage)


def split_passages(text: str) -> list[str]:
    """Split a text into passages of at most 120 words, at empty lines where that is possible."""
    passages: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", text):
        words = paragraph.split()
        if passages[-1] and len(passages[-1]) + len(words) > _PASSAGE_WORDS:
            passages.append([])
        while len(words) > _PASSAGE_WORDS:
            passages[-1:] = [[*passages[-1], *words[:_PASSAGE_WORDS]], []]
            words = words[_PASSAGE_WORDS:]
        passages[-1] += words
    return [" ".join(words) for words in passages if words]
