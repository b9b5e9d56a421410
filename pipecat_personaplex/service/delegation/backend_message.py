"""What a message of the backend's model amounts to."""

from __future__ import annotations

_NOTHING = frozenset({"nothing", "nothing to add", "nothing to do", "none"})
_AGREEMENT = frozenset({"ok", "okay", "done"})


def says_nothing(text: str) -> bool:
    """Whether a model writes that it has nothing to say."""
    return _plain(text) in _NOTHING


def is_fact(note: str) -> bool:
    """Whether a note says something to remember. "Done." does not, but may be spoken."""
    return not says_nothing(note) and _plain(note) not in _AGREEMENT


def _plain(text: str) -> str:
    return text.strip(" \t\r\n.!\"'`()[]*").lower()
