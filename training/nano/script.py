"""The agent's script: two roles, their prompts, and an answer for each intent.

The answer to an intent of the other role is the role's ``refusal``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.nano.wordings import RESTAURANT, SHARED, TEACHER

RoleName = Literal["restaurant", "teacher"]
REFUSAL = "refusal"
BACKCHANNEL = "Uh-huh."
"""The agent's response to a story, while the caller continues to speak."""

NAMES = (
    *("Owen", "Alice", "Ben", "Clara", "David", "Emma", "Frank"),
    *("Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Maya"),
)
_SURNAMES = ("Foster", "Baker", "Stone", "Miller", "Reed", "Hill")


@dataclass(frozen=True)
class Role:
    """One of the agent's roles.

    Attributes:
        name: Name of the role.
        answers: The answer to each intent; ``{name}`` stands for the agent's name.
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
            "abilities": "I can tell you the menu, and take your order.",
            "menu": "We have classic and spicy shakshuka.",
            "price_classic": "The classic is nine dollars fifty.",
            "price_spicy": "The spicy is ten dollars twenty five.",
            "order_classic": "One classic shakshuka, coming up.",
            "order_spicy": "One spicy shakshuka, coming right away.",
            "in_classic": "It has poached eggs and tomatoes.",
            "in_spicy": "It has scrambled eggs and jalapenos.",
            "drinks": "We have coffee, tea and lemon juice.",
            "hours": "We are open until ten tonight.",
            "location": "We are on Market Street.",
            "card": "You can pay by card or cash.",
            "wait": "It takes about fifteen minutes.",
            REFUSAL: "Sorry, I can only take your order.",
        },
    ),
    "teacher": Role(
        "teacher",
        {
            "hello": "Hi, I am {name}, your teacher. What shall we learn?",
            "name": "I am {name}.",
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
_SHOPS = (
    ("Jerusalem Shakshuka", "restaurant"),
    ("Sunrise Kitchen", "restaurant"),
    ("The Golden Egg", "diner"),
    ("Pepper and Pan", "drive-thru restaurant"),
)
_INFORMATION = (
    "There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy (scrambled eggs "
    "with jalapenos, $10.25)."
)
_TEACHER_PROMPT = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and "
    "engaging way."
)


@dataclass(frozen=True)
class Character:
    """The agent's role, name and prompt in one dialogue; a teacher may have no name."""

    role: RoleName
    name: str | None
    prompt: str

    def answer(self, intent: str) -> str:
        """The answer to an intent; a refusal if the intent belongs to the other role."""
        answers = ROLES[self.role].answers
        if self.name is None and intent in _UNNAMED_ANSWERS:
            return _UNNAMED_ANSWERS[intent]
        text = answers.get(intent, answers[REFUSAL])
        return text.format(name=self.name) if self.name else text


def sample_character(random: np.random.Generator, role: RoleName | None = None) -> Character:
    """Sample a role, a name and a prompt that states both; includes the bots' prompts."""
    role = role or ("restaurant" if random.random() < 0.5 else "teacher")
    name = NAMES[int(random.integers(len(NAMES)))]
    full = name
    if random.random() < 0.5:
        full = f"{name} {_SURNAMES[int(random.integers(len(_SURNAMES)))]}"
    if role == "teacher":
        kind = random.random()
        if kind < 0.3:
            return Character(role, None, _TEACHER_PROMPT)
        if kind < 0.7:
            return Character(role, name, f"{_TEACHER_PROMPT} Your name is {full}.")
        return Character(role, name, f"You are a friendly teacher and your name is {full}.")
    shop, kind_of = _SHOPS[int(random.integers(len(_SHOPS)))]
    if random.random() < 0.5:
        shop, kind_of = _SHOPS[0]
    prompt = f"You work for {shop} which is a {kind_of} and your name is {full}."
    if random.random() < 0.7:
        prompt += f" Information: {_INFORMATION}"
    return Character(role, name, prompt)


def intents(role: RoleName) -> list[str]:
    """The intents that a role answers."""
    return [*SHARED, *(RESTAURANT if role == "restaurant" else TEACHER)]


def all_sentences() -> dict[str, str]:
    """Every sentence of the agents, with the intent that it answers."""
    sentences = {BACKCHANNEL: "backchannel"}
    sentences |= {text: intent for intent, text in _UNNAMED_ANSWERS.items()}
    for role in ROLES.values():
        for intent, text in role.answers.items():
            for name in NAMES if "{name}" in text else ("",):
                sentences[text.format(name=name)] = intent
    return sentences
