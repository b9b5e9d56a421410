"""Facts that stand in the agent's prompt, within a budget of tokens."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from dataclasses import replace

from pipecat_personaplex.config import Persona

FACT_TOKENS = 400
"""Tokens of all facts together; each token is a frame of the model's window."""

_MARK = "Information:"  # what precedes the facts in the prompts that the model was trained on
_GATHER_SECONDS = 0.3
_MAX_BUDGETS = 8  # personas whose budget is known; the budget of any other is FACT_TOKENS


def estimated_tokens(text: str) -> int:
    """About how many tokens a text has, rather too many.

    The tokeniser is the engine's. English has about four characters a token, and a number or a
    name in another script at least one token for each character.
    """
    dense = sum(not char.isascii() or char.isdigit() for char in text)
    return math.ceil((len(text) - dense) / 3.5) + dense


class Knowledge:
    """Facts by key. When they exceed a budget of tokens, the oldest are left out.

    Example::

        knowledge = Knowledge()
        knowledge.set("caller", "The caller is Ann Lee, a member since 2019.")
        knowledge.prompt("You work for Dr Jones.")
        # "You work for Dr Jones. Information: The caller is Ann Lee, a member since 2019."
    """

    def __init__(self) -> None:
        self._facts: dict[str, str] = {}  # oldest first

    def set(self, key: str, text: str) -> bool:
        """Add a fact, or replace it; it is then the newest. An empty text removes it.

        Returns:
            Whether anything has changed.
        """
        text = _one_line(text)
        if not text:
            return self.drop(key)
        if self._facts.get(key) == text:
            return False
        self._facts.pop(key, None)
        self._facts[key] = text
        return True

    def drop(self, key: str) -> bool:
        """Remove a fact; returns whether it was there."""
        return self._facts.pop(key, None) is not None

    def keys(self, prefix: str = "") -> list[str]:
        """Keys that begin with a prefix, oldest first."""
        return [key for key in self._facts if key.startswith(prefix)]

    def smaller_budget(self, budget: int, tokens: int) -> int | None:
        """A budget of this many tokens less than the facts take within the given one.

        Returns:
            None if no facts fit into the given budget, so that no prompt is shorter.
        """
        chosen = self._chosen(budget)
        if not chosen:
            return None
        used = sum(estimated_tokens(text) for text in chosen)
        return max(0, min(budget, used) - max(1, tokens))

    def prompt(self, base: str, budget: int = FACT_TOKENS) -> str:
        """The role followed by the facts that fit into the budget, newest first."""
        facts = " ".join(self._chosen(budget))
        if not facts:
            return base
        mark = "" if _MARK in base else f"{_MARK} "
        return f"{base.rstrip()} {mark}{facts}".strip()

    def _chosen(self, budget: int) -> list[str]:
        """The newest facts that fit; the newest of all is cut if it alone does not fit."""
        chosen: list[str] = []
        left = budget
        for text in reversed(self._facts.values()):
            if estimated_tokens(text) > left:
                if not chosen:
                    chosen += [cut] if (cut := _cut(text, left)) else []
                break
            chosen.append(text)
            left -= estimated_tokens(text)
        return chosen


class PromptFacts:
    """The facts of one call; gathers changes so that a burst of them is one new prompt.

    A persona whose prompt was too long has a budget of its own. It does not count for other
    personas, which may have a shorter role.

    Args:
        apply: Called on the event loop when the prompt has to be replaced.
    """

    def __init__(self, apply: Callable[[], None]):
        self.knowledge = Knowledge()
        self._budgets: dict[Persona, int] = {}  # by persona without facts
        self._apply = apply
        self._timer: asyncio.TimerHandle | None = None

    def set(self, key: str, text: str) -> None:
        """Add or replace a fact."""
        if self.knowledge.set(key, text):
            self.renew()

    def drop(self, key: str) -> None:
        """Remove a fact."""
        if self.knowledge.drop(key):
            self.renew()

    def mirror(self, prefix: str, texts: list[str]) -> None:
        """Make these texts the facts whose keys begin with a prefix."""
        wanted = {f"{prefix}{text}": text for text in texts}
        for key in self.knowledge.keys(prefix):
            if key not in wanted:
                self.drop(key)
        for key, text in wanted.items():
            self.set(key, text)

    def added_to(self, persona: Persona) -> Persona:
        """The persona with as many facts behind its role as its budget allows."""
        budget = self._budgets.get(persona, FACT_TOKENS)
        return replace(persona, text_prompt=self.knowledge.prompt(persona.text_prompt, budget))

    def shrink(self, persona: Persona, tokens: int) -> bool:
        """Have ``added_to`` leave out facts of at least so many tokens for this persona.

        Returns:
            Whether fewer facts remain, so that the prompt has become shorter.
        """
        budget = self._budgets.get(persona, FACT_TOKENS)
        smaller = self.knowledge.smaller_budget(budget, tokens)
        if smaller is None:
            return False
        self._budgets.pop(persona, None)  # it becomes the latest
        self._budgets[persona] = smaller
        if len(self._budgets) > _MAX_BUDGETS:
            del self._budgets[next(iter(self._budgets))]
        return True

    def renew(self, seconds: float = _GATHER_SECONDS) -> None:
        """Replace the prompt after this time at the latest, with all changes until then."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # before the call: the first prompt has the facts
        due = loop.time() + seconds
        if self._timer is not None:
            if self._timer.cancelled() or self._timer.when() <= due:  # closed, or sooner
                return
            self._timer.cancel()
        self._timer = loop.call_at(due, self._renew)

    def close(self) -> None:
        """Replace no prompt any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _renew(self) -> None:
        self._timer = None
        self._apply()


def _one_line(text: str) -> str:
    # The engine refuses a prompt with half of a surrogate pair.
    text = text.encode("utf-8", "ignore").decode()
    # The engine encloses the prompt in <system> tags.
    return re.sub(r"\s+", " ", re.sub(r"[<>]", " ", text)).strip()


def _cut(text: str, tokens: int) -> str:
    """The first sentences of a text, or else the first words, that have so many tokens."""
    for separator in (r"(?<=[.!?])\s", r"\s"):
        kept = ""
        for part in re.split(separator, text):
            longer = f"{kept} {part}".strip()
            if estimated_tokens(longer) > tokens:
                break
            kept = longer
        if kept:
            return kept
    return ""
