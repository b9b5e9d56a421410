"""When the agent keeps silent because a backend may have the answer."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import MAX_HOLD_SECONDS

Router = Callable[[str], bool | Awaitable[bool]]
"""Tells from what the caller has said so far whether the backend is needed."""

# Words that stand in descriptions of tools and say nothing of their subject.
_COMMON = frozenset(
    "about after also and any are ask call caller can for from function get give gives has have "
    "how into its list look make not one other set tell tells that the their them then there these "
    "this tool user what when where which who whose why will with you your".split()
)


@dataclass(frozen=True)
class Hold:
    """Keeps the model from inventing an answer before the backend has spoken.

    Make one with ``never``, ``when`` or ``until_decided``.

    Attributes:
        mode: Which of the three.
        seconds: For ``until_decided``: how long the backend may take to begin an answer or a tool
            in a turn that the router does not accept.
        router: Tells whether the backend is needed; None accepts a text that shares a word with the
            names and descriptions of the backend's tools.

    Example::

        Hold.until_decided(1.0)
        Hold.when(lambda text: "order" in text)
    """

    mode: Literal["never", "when", "until_decided"]
    seconds: float = 1.0
    router: Router | None = None

    @classmethod
    def never(cls) -> Hold:
        """The model answers at once; the backend's answer follows at the next pause."""
        return cls("never")

    @classmethod
    def when(cls, router: Router | None = None) -> Hold:
        """Hold from the first transcript that a router accepts until the backend has spoken.

        Args:
            router: Called with what the caller has said so far, also with interim transcripts. It
                may be a coroutine function. None accepts a text that shares a word with the names
                and descriptions of the backend's tools.

        Raises:
            ConfigError: The router is no function.
        """
        return cls("when", router=_checked_router(router))

    @classmethod
    def until_decided(cls, seconds: float = 1.0, router: Router | None = None) -> Hold:
        """Hold from the start of each turn of the caller until the backend has spoken.

        In a turn that the router accepts, the agent is silent until the backend has answered or has
        nothing to add, however long that takes (see ``Delegation.timeout_secs``). In any other
        turn, the model answers by itself if the backend neither answers nor calls a tool in
        ``seconds`` after the end of the turn. Keep them below 2: after a longer silence the model
        rarely answers.

        Args:
            seconds: For turns that the router does not accept: more than 0, at most 30.
            router: Called with the words of the finished turn. It may be a coroutine function.
                None accepts words of the tools, as for ``when``; ``lambda text: True`` accepts
                every turn.

        Raises:
            ConfigError: ``seconds`` is out of range, or the router is no function.
        """
        if not 0 < seconds <= MAX_HOLD_SECONDS:
            raise ConfigError(
                f"Hold.until_decided takes more than 0 and at most {MAX_HOLD_SECONDS:g} s, "
                f"not {seconds}"
            )
        return cls("until_decided", seconds, _checked_router(router))


def _checked_router(router: Router | None) -> Router | None:
    if router is not None and not callable(router):
        raise ConfigError(f"the router of a Hold is a function of a text, not {router!r}")
    return router


def subject_words(texts: Iterable[str]) -> frozenset[str]:
    """Words of these texts that name a subject: lower case, without a plural's s.

    Example::

        subject_words(["opening_hours", "When the shop is open"])  # {"opening", "hour", ...}
    """
    words = (word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    return frozenset(_singular(word) for word in words if len(word) > 2 and word not in _COMMON)


def word_router(texts: Iterable[str]) -> Router:
    """A router that accepts a text if it shares a subject word with these texts."""
    known = subject_words(texts)
    return lambda text: bool(known & subject_words([text]))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
