"""What the page says about the model that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NANO = "nano"

TEACHER = (
    "You are a wise and friendly teacher. Answer questions or provide advice in a clear and "
    "engaging way."
)
"""The only assistant role that the model was trained on, in NVIDIA's exact words."""

RESTAURANT = (
    "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
    "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
    "(scrambled eggs with jalapenos, $10.25)."
)
"""NVIDIA's example of a service role: employer, name, and all facts that the agent may state."""


@dataclass(frozen=True)
class Role:
    """A role that the page offers, and what one can ask it.

    Attributes:
        kind: Which of NVIDIA's kinds of prompts it is: ``assistant``, ``service`` or ``casual``.
        prompt: The text prompt.
        questions: Questions that this model answers.
    """

    kind: str
    prompt: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A model, as the page describes it.

    Attributes:
        name: Short name.
        description: What it is and what it can do, in a sentence or two.
        roles: Roles to begin with; the first is the default.
    """

    name: str
    description: str
    roles: tuple[Role, ...]


def describe_model(model: str) -> ModelInfo:
    """Describe a model.

    Args:
        model: A model name without ``auto``.
    """
    if model == NANO:
        return ModelInfo(
            NANO,
            "A small demonstration model that runs on any computer. It knows the topics of two "
            "roles by heart, and takes its name, employer, menu, prices, closing time and street "
            "from the role's text. Its voice is rough: it was trained on synthetic speech.",
            (
                Role(
                    "service",
                    f"{RESTAURANT} Open until 10:30 pm. Address: 12 Market Street.",
                    (
                        "What is on the menu?",
                        "How much is the classic?",
                        "Where are you?",
                        "When are you open?",
                        "What is your name?",
                        "What drinks do you have?",
                        "Can I pay by card?",
                    ),
                ),
                Role(
                    "assistant",
                    TEACHER,
                    (
                        "Why is the sky blue?",
                        "What is gravity?",
                        "How many planets go around our sun?",
                        "Tell me a joke.",
                        "How do rainbows form?",
                        "What is the capital of France?",
                    ),
                ),
            ),
        )
    return ModelInfo(
        Path(model).name if Path(model).exists() else model,
        "It speaks English, listens while it talks, and decides by itself when to speak. It looks "
        "nothing up: put facts into the role; the model may invent others.",
        (
            Role(
                "assistant",
                TEACHER,
                ("Why is the sky blue?", "How do I learn a language?", "Explain gravity to me."),
            ),
            Role(
                "service",
                RESTAURANT,
                ("What is on the menu?", "I would like to order.", "Who am I talking to?"),
            ),
            Role(
                "casual",
                "You enjoy having a good conversation.",
                ("How was your day?", "What do you like to cook?", "Let me tell you a story."),
            ),
        ),
    )
