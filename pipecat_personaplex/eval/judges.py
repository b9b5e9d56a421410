"""Judges: how good an answer is, from 0 to 5."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Protocol

from pipecat_personaplex.errors import ConfigError, UserError
from pipecat_personaplex.eval.addresses import split_address
from pipecat_personaplex.eval.plugins import find_plugin
from pipecat_personaplex.eval.run_files import read_stored, write_json

GROUP = "personaplex.judges"
"""Entry points: functions from the text after the colon of ``--judge`` to a ``Judge``."""
BEST_RATING = 5
_ATTEMPTS = 3
_RATING = re.compile(r"rating\s*:\s*([0-5])(\s*/\s*5)?\s*\.?", re.IGNORECASE)
_OPENAI = "https://api.openai.com/v1"
_INSTRUCTIONS = (
    "You rate a voice agent. Read the agent's role, what the caller says, and what the agent "
    "answers; the answer is a transcript and may have errors of recognition. Rate from 0 (no "
    "answer, or nothing to do with the caller's words) to 5 (answers exactly what the caller "
    "wants, in keeping with the role). First give one sentence of reason. End with a line of the "
    "form: Rating: N"
)


@dataclass(frozen=True)
class Answer:
    """What is judged.

    Attributes:
        role: The agent's text prompt.
        caller: What the caller says; empty if unknown.
        agent: What the agent answers.
        wanted: Words of which a right answer contains at least one; empty if unknown.
    """

    role: str
    caller: str
    agent: str
    wanted: tuple[str, ...] = ()

    def text(self) -> str:
        """The question to a language model."""
        return (
            f"Role: {self.role or '(none)'}\nCaller: {self.caller or '(unknown)'}\n"
            f"Agent: {self.agent or '(silence)'}"
        )


class Judge(Protocol):
    """Rates answers.

    Attributes:
        name: Names judge and model; part of the key under which judgements are stored.
    """

    name: str

    def __call__(self, answer: Answer) -> str:
        """Return a text whose last line is ``Rating: N``, N from 0 to 5; empty for no rating."""
        ...


def find_judge(text: str, keys: Mapping[str, str]) -> Judge | None:
    """Make the judge that ``--judge`` names; None for ``none``.

    Args:
        text: ``none``, ``rules``, ``openai:MODEL``, or the URL of an OpenAI-compatible server with
            the model after ``#``.
        keys: API keys by judge (``openai``, ``server``); a missing one is not sent.

    Raises:
        ConfigError: The name is unknown, or the API key is missing.
    """
    if text == "none":
        return None
    if text.startswith(("http://", "https://")):
        url, _, model = text.partition("#")
        return ChatJudge(url, model or "default", keys.get("server"))
    return find_plugin(
        "--judge",
        GROUP,
        text,
        {"rules": RuleJudge, "openai": lambda model: _openai(model, keys.get("openai"))},
    )


def _openai(model: str, key: str | None) -> Judge:
    if not model:
        raise ConfigError("--judge openai needs a model, such as openai:gpt-4o")
    if not key:
        raise ConfigError("--judge openai needs an API key in OPENAI_API_KEY")
    return ChatJudge(_OPENAI, model, key)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w.']+", text.lower()))


class RuleJudge:
    """Compares with the words of a right answer: 5 if one occurs, else 0; nothing if unknown.

    The words may be the beginning of longer ones: "apolog" occurs in "I apologize".
    """

    def __init__(self, argument: str = ""):
        if argument:
            raise ConfigError(f"--judge rules takes no argument, not {argument!r}")
        self.name = "rules"

    def __call__(self, answer: Answer) -> str:
        """Rate the answer."""
        if not answer.wanted:
            return ""
        spoken = f" {_plain(answer.agent)}"
        found = [words for words in map(_plain, answer.wanted) if words and f" {words}" in spoken]
        return f"Rating: {BEST_RATING if found else 0}"


class ChatJudge:
    """A language model behind an OpenAI-compatible server.

    Args:
        url: Address of the API, such as ``http://localhost:8000/v1``.
        model: The model.
        key: The API key, if the server needs one.
        timeout: Seconds to wait for an answer.

    Raises:
        ConfigError: The URL is not valid, or has a user's name and password.
    """

    def __init__(self, url: str, model: str, key: str | None = None, timeout: float = 60.0):
        if "@" in url:  # its password must not reach the screen or the files of a run
            raise ConfigError(
                "the address of --judge must have no @, thus no user's name and password; give an "
                "address such as http://localhost:8000/v1, and a key in PERSONAPLEX_JUDGE_KEY"
            )
        parts = split_address(url, ("http", "https"))
        if parts is None:
            raise ConfigError(f"--judge {url}: give an address such as http://localhost:8000/v1")
        self.name = f"{parts.netloc}{parts.path.rstrip('/')}/{model}"
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._model = model
        self._key = key
        self._timeout = timeout

    def __call__(self, answer: Answer) -> str:
        """Request a judgement.

        Raises:
            UserError: The server cannot be reached, or refuses.
        """
        body = {
            "model": self._model,
            "temperature": 0,
            "seed": 0,
            "messages": [
                {"role": "system", "content": _INSTRUCTIONS},
                {"role": "user", "content": answer.text()},
            ],
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                content = json.load(response)
            return str(content["choices"][0]["message"]["content"])
        except urllib.error.HTTPError as error:
            detail = error.read(300).decode(errors="replace")
            raise UserError(f"the judge {self._url} answers {error.code}: {detail}") from None
        except (OSError, ValueError, HTTPException) as error:
            raise UserError(f"the judge {self._url} cannot be reached: {error}") from None
        except (KeyError, IndexError, TypeError):
            raise UserError(f"the judge {self._url} does not answer as OpenAI's API does") from None


@dataclass
class StoredJudge:
    """A judge whose answers are stored by content, so that each is requested once.

    Attributes:
        judge: The judge.
        folder: Where the answers are stored.

    Example::

        rating, attempts = StoredJudge(RuleJudge(), run.path / "judge").rate(answer)
    """

    judge: Judge
    folder: Path

    def rate(self, answer: Answer) -> tuple[int | None, int]:
        """Return the rating and the attempts that it took; None if no attempt gave a rating.

        Raises:
            UserError: The judge cannot be reached, or a stored answer is damaged.
        """
        content = [self.judge.name, answer.text(), *answer.wanted]
        key = hashlib.sha256("\0".join(content).encode()).hexdigest()[:24]
        path = self.folder / f"{key}.json"
        kept = not isinstance(self.judge, RuleJudge)  # rules are free, and may change
        if kept and path.is_file():
            keys = ("replies", "rating", "attempts")
            stored = read_stored(path, dict, keys, "delete it, and the judge is asked again")
            # An earlier version took any number after "rating".
            if stored["rating"] == parse_rating(stored["replies"][-1]):
                return stored["rating"], stored["attempts"]
        rating: int | None = None
        replies: list[str] = []
        while rating is None and len(replies) < _ATTEMPTS:
            replies.append(self.judge(answer))
            rating = parse_rating(replies[-1])
            if not replies[-1]:
                break  # the judge has no opinion on this answer
        record = {
            "judge": self.judge.name,
            "question": answer.text(),
            "replies": replies,
            "rating": rating,
            "attempts": len(replies),
        }
        if kept:
            write_json(path, record)
        return rating, len(replies)


def parse_rating(reply: str) -> int | None:
    """The rating in a judge's reply, whose last line must be ``Rating: N``; None without one.

    Asterisks (Markdown), ``/5`` and a full stop may be part of the line.
    """
    *_, last = reply.strip().splitlines() or [""]
    found = _RATING.fullmatch(last.replace("*", "").strip())
    return int(found[1]) if found else None
