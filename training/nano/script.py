"""The agent's script: two roles, their prompts, and an answer for each intent.

The answer to an intent of the other role is the role's ``refusal``. Answers copy the name and the
facts of the prompt; to a question about a fact that is not in it, the answer is ``UNKNOWN``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np

from training.nano.facts import FACTS, Known, information, sample_facts
from training.nano.names import HELD_OUT_NAMES, NAMES
from training.nano.wordings import RESTAURANT, SHARED, TEACHER

RoleName = Literal["restaurant", "teacher"]
REFUSAL = "refusal"
BACKCHANNEL = "Uh-huh."
"""The agent's response to a story, while the caller continues to speak."""

UNKNOWN = "Sorry, I do not know that."
SURNAMES = ("Foster", "Baker", "Stone", "Miller", "Reed", "Hill")
"""Surnames that a prompt may add; the agent does not say them."""


@dataclass(frozen=True)
class Role:
    """One of the agent's roles.

    Attributes:
        name: Name of the role.
        answers: The answer to each intent. ``{name}`` stands for the agent's name, and at most one
            other field for the fact of that name.
    """

    name: RoleName
    answers: dict[str, str]


ROLES: dict[RoleName, Role] = {
    "restaurant": Role(
        "restaurant",
        {
            "hello": "Hello, this is {name}. What can I get you?",
            "name": "My name is {name}.",
            "thanks": "You are welcome.",
            "bye": "Goodbye, and enjoy your meal.",
            "how_are_you": "I am fine, and hungry.",
            "abilities": "I can take your order for {employer}.",
            "menu": "We have classic and spicy {dish}.",
            "price_classic": "The classic is {price_classic}.",
            "price_spicy": "The spicy is {price_spicy}.",
            "order_classic": "One classic {dish}, coming up.",
            "order_spicy": "One spicy {dish}, coming right away.",
            "in_classic": "It has {in_classic}.",
            "in_spicy": "It has {in_spicy}.",
            "drinks": "We have coffee, tea and lemon juice.",
            "hours": "We are open until {hours}.",
            "location": "We are on {location}.",
            "card": "You can pay by card or cash.",
            "wait": "It takes about fifteen minutes.",
            REFUSAL: "Sorry, I can only take your order.",
        },
    ),
    "teacher": Role(
        "teacher",
        {
            "hello": "Hi, I am {name}, your teacher. What shall we learn?",
            "name": "You can call me {name}.",
            "thanks": "It was my pleasure.",
            "bye": "Goodbye, and keep learning.",
            "how_are_you": "I am very well, and curious.",
            "abilities": "You can ask me about the sky, the planets and the sea.",
            "sky": "Air scatters blue light the most.",
            "planets": "Eight planets go around our sun.",
            "gravity": "Gravity pulls all things together.",
            "light": "Light travels three hundred thousand kilometers a second.",
            "language": "Speak a little of it every day.",
            "exam": "Sleep well, and practice old questions.",
            "ocean": "The Pacific is the largest ocean.",
            "france": "Paris is the capital of France.",
            "rainbow": "Rain drops bend the light into colors.",
            "water": "Water boils at one hundred degrees.",
            "joke": "Why was the book sad? It had too many problems.",
            "moon": "The moon is very far, four hundred thousand kilometers.",
            REFUSAL: "I only teach, I do not sell food.",
        },
    ),
}
_UNNAMED_ANSWERS = {
    "hello": "Hi, I am your teacher. What shall we learn?",
    "name": "I am your teacher.",
}
_KINDS = ("restaurant", "restaurant", "diner", "drive-thru restaurant")
_UNINFORMED_SHARE = 0.15
# The names of the documentation's examples are said most surely.
_COMMON_NAMES, _COMMON_SHARE = 14, 0.25
_TEACHER_PROMPT = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and "
    "engaging way."
)


def fact_of(answer: str) -> str | None:
    """The name of the fact that an answer copies from the prompt; None without one."""
    return next((fact for fact in FACTS if f"{{{fact}}}" in answer), None)


@dataclass(frozen=True)
class Character:
    """The agent's role, name, prompt and what it says; a teacher may have no name."""

    role: RoleName
    name: str | None
    prompt: str
    facts: Known = field(default_factory=dict)

    def answer(self, intent: str) -> str:
        """The answer to an intent; a refusal if the intent belongs to the other role."""
        answers = ROLES[self.role].answers
        if self.name is None and intent in _UNNAMED_ANSWERS:
            return _UNNAMED_ANSWERS[intent]
        text = answers.get(intent, answers[REFUSAL])
        fact = fact_of(text)
        if fact and fact not in self.facts:
            return UNKNOWN
        spoken = {fact: value.spoken for fact, value in self.facts.items()}
        return text.format(name=self.name, **spoken)


def sample_character(
    random: np.random.Generator, role: RoleName | None = None, names: Sequence[str] = NAMES
) -> Character:
    """Sample a role, a name and a prompt that states both; of the same form as the bots'."""
    role = role or ("restaurant" if random.random() < 0.5 else "teacher")
    common = names[:_COMMON_NAMES] if random.random() < _COMMON_SHARE else names
    name = common[int(random.integers(len(common)))]
    full = name
    if random.random() < 0.5:
        full = f"{name} {SURNAMES[int(random.integers(len(SURNAMES)))]}"
    if role == "teacher":
        kind = random.random()
        if kind < 0.3:
            return Character(role, None, _TEACHER_PROMPT)
        if kind < 0.7:
            return Character(role, name, f"{_TEACHER_PROMPT} Your name is {full}.")
        return Character(role, name, f"You are a friendly teacher and your name is {full}.")
    facts = sample_facts(random)
    told = information(facts, random)
    if not told or random.random() < _UNINFORMED_SHARE:
        facts, told = {"employer": facts["employer"]}, ""
    prompt = (
        f"You work for {facts['employer'].written} which is a {random.choice(_KINDS)} "
        f"and your name is {full}."
    )
    return Character(role, name, f"{prompt} Information: {told}" if told else prompt, facts)


def intents(role: RoleName) -> list[str]:
    """The intents that a role answers."""
    return [*SHARED, *(RESTAURANT if role == "restaurant" else TEACHER)]


@dataclass(frozen=True)
class Part:
    """Words of a line that are synthesised together.

    Attributes:
        text: The words.
        value: Whether they are copied from the prompt.
    """

    text: str
    value: bool = False


@dataclass(frozen=True)
class Line:
    """A sentence of the agent, and the parts that are spoken one after the other.

    All lines of a template have the same parts but for the values, so that nothing that is spoken
    before a value tells which one follows.
    """

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The sentence."""
        return " ".join(part.text for part in self.parts)

    @property
    def copied(self) -> list[int]:
        """The numbers of its words that are copied from the prompt."""
        flags = [part.value for part in self.parts for _ in part.text.split()]
        return [index for index, value in enumerate(flags) if value]


_FIELD = re.compile(r"(\{\w+\}[.,?!]*)")


def _values() -> dict[str, Sequence[tuple[str, ...]]]:
    """What may stand in an answer's fields, in the parts that are recorded."""
    spoken = {fact: [value.parts for value in values] for fact, values in FACTS.items()}
    return {"name": [(name,) for name in (*NAMES, *HELD_OUT_NAMES)], **spoken}


def _template_lines(template: str) -> Iterator[Line]:
    """All lines of a template."""
    pieces = [piece.strip() for piece in _FIELD.split(template) if piece.strip()]
    values = _values()
    fields = [name for name in values if f"{{{name}}}" in template]
    if not fields:
        yield Line((Part(template),))
        return
    (name,) = fields
    for value in values[name]:
        parts: list[Part] = []
        for piece in pieces:
            if piece.startswith("{"):
                *before, last = value
                stop = piece.removeprefix(f"{{{name}}}")
                parts += [*(Part(each, True) for each in before), Part(last + stop, True)]
            else:
                parts.append(Part(piece))
        yield Line(tuple(parts))


def lines(role: RoleName) -> Iterator[Line]:
    """Every line of a role, with all values of names and facts."""
    for template in (*ROLES[role].answers.values(), BACKCHANNEL):
        yield from _template_lines(template)
    for template in _UNNAMED_ANSWERS.values() if role == "teacher" else (UNKNOWN,):
        yield from _template_lines(template)


@cache
def all_lines() -> dict[str, Line]:
    """Every line of the agent, by its text."""
    return {line.text: line for role in ROLES for line in lines(role)}
