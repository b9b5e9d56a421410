"""What can be asked and what is answered: two roles, their prompts, intents and wordings.

Of each intent's wordings the last two are held out for evaluation. An intent of the other role is
answered with the role's ``refusal``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

RoleName = Literal["restaurant", "teacher"]
_HELD_OUT = 2
REFUSAL = "refusal"

NAMES = (
    *("Owen", "Alice", "Ben", "Clara", "David", "Emma", "Frank"),
    *("Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Maya"),
)
_SURNAMES = ("Foster", "Baker", "Stone", "Miller", "Reed", "Hill")

SHARED: dict[str, str] = {
    "hello": "Hello. Hi there. Good morning. Hey, hello. Good evening. Hi, good afternoon. "
    "Hello there. Hi, good morning.",
    "name": "What is your name? What's your name, please? Who are you? Can you tell me your name? "
    "May I ask your name? Who am I talking to? Tell me your name. Sorry, what is your name?",
    "thanks": "Thank you. Thanks a lot. Thank you very much. Thanks. Great, thank you. "
    "Many thanks. Thank you so much. Okay, thanks.",
    "bye": "Goodbye. Bye bye. See you later. Okay, goodbye. Bye for now. See you soon, bye. "
    "Goodbye then. Bye, see you.",
    "how_are_you": "How are you? How are you today? How are you doing? And how are you? "
    "How do you do? Are you well today? So how are you? How are you doing today?",
}
RESTAURANT: dict[str, str] = {
    "menu": "What is on the menu? What do you have? Can I hear the menu? What can I order? "
    "What dishes do you have? Tell me the menu, please. What's on your menu? "
    "Could I hear the menu, please?",
    "price_classic": "How much is the classic? What does the classic cost? "
    "What is the price of the classic one? How much for the classic? Tell me the price of the "
    "classic. How much does the classic cost? What's the price of the classic? "
    "And how much is the classic one?",
    "price_spicy": "How much is the spicy? What does the spicy cost? "
    "What is the price of the spicy one? How much for the spicy? Tell me the price of the spicy. "
    "How much does the spicy cost? What's the price of the spicy? And how much is the spicy one?",
    "order_classic": "I would like the classic, please. Can I have the classic? "
    "I'll take the classic. One classic, please. Give me a classic. I want the classic one. "
    "I'd like one classic. Could I have the classic, please?",
    "order_spicy": "I would like the spicy, please. Can I have the spicy? I'll take the spicy. "
    "One spicy, please. Give me a spicy. I want the spicy one. I'd like one spicy. "
    "Could I have the spicy, please?",
    "in_classic": "What is in the classic? What is the classic made of? "
    "What comes with the classic? What's inside the classic? Tell me what is in the classic. "
    "What do you put in the classic? What's in the classic one? So what is in the classic?",
    "in_spicy": "What is in the spicy? What is the spicy made of? What comes with the spicy? "
    "What's inside the spicy? Tell me what is in the spicy. What do you put in the spicy? "
    "What's in the spicy one? So what is in the spicy?",
    "drinks": "What drinks do you have? Do you have coffee? Can I get a drink? "
    "Is there anything to drink? Do you sell tea or coffee? I want something to drink. "
    "Do you have any drinks? Could I get something to drink?",
    "hours": "When do you close? When are you open? What are your opening hours? "
    "How late are you open? What time do you close? Are you open tonight? "
    "What time are you open? When do you close tonight?",
    "location": "Where are you? What is your address? Where is the restaurant? "
    "How do I find you? Which street are you on? Tell me the address, please. "
    "What's your address? So where is your restaurant?",
    "card": "Can I pay by card? Do you take cards? Is cash okay? How can I pay? "
    "Do you accept credit cards? Can I pay with cash? Can I pay with a card? "
    "Do you take credit cards?",
    "wait": "How long will it take? When will it be ready? How long do I have to wait? "
    "Is it ready soon? How many minutes will it take? How long is the wait? "
    "How long does it take? When will my food be ready?",
}
TEACHER: dict[str, str] = {
    "sky": "Why is the sky blue? What makes the sky blue? Can you explain the blue sky? "
    "How come the sky is blue? Tell me why the sky is blue. Why does the sky look blue? "
    "So why is the sky blue? Can you tell me why the sky is blue?",
    "planets": "How many planets are there? How many planets do we have? "
    "What is the number of planets? Tell me how many planets there are. "
    "Can you count the planets? How many planets go around the sun? "
    "So how many planets are there? How many planets are there around the sun?",
    "gravity": "What is gravity? Why do things fall down? Can you explain gravity? "
    "How does gravity work? Tell me about gravity. Why do apples fall? "
    "So what is gravity? Could you explain gravity to me?",
    "light": "How fast is light? What is the speed of light? How fast does light travel? "
    "Tell me the speed of light. What's the speed of light? How quick is light? "
    "So how fast is light? Can you tell me the speed of light?",
    "language": "How can I learn a language? How do I learn English? "
    "What helps to learn a language? I want to learn a language. "
    "Can you help me learn French? How should I study a language? "
    "How do I learn a new language? What is the best way to learn a language?",
    "exam": "I have an exam tomorrow. How do I study for an exam? I am afraid of my exam. "
    "How can I pass the exam? What should I do before an exam? Help me with my exam. "
    "I have an exam soon. How should I study for my exam?",
    "ocean": "What is the largest ocean? Which ocean is the biggest? What's the biggest ocean? "
    "Tell me the largest ocean. Which is the largest ocean? Name the biggest ocean. "
    "So what is the largest ocean? Can you tell me the biggest ocean?",
    "france": "What is the capital of France? Which city is the capital of France? "
    "Tell me the capital of France. What's the capital of France? "
    "Name the capital of France. Do you know the capital of France? "
    "So what is the capital of France? Can you name the capital of France?",
    "rainbow": "What is a rainbow? How does a rainbow form? Why do we see rainbows? "
    "What makes a rainbow? Tell me about rainbows. Can you explain the rainbow? "
    "So how does a rainbow form? Can you tell me what makes a rainbow?",
    "water": "When does water boil? At what temperature does water boil? How hot is boiling water? "
    "Tell me when water boils. What is the boiling point of water? How hot does water get? "
    "So when does water boil? What temperature does water boil at?",
    "joke": "Tell me a joke. Do you know a joke? Make me laugh. Can you tell a joke? "
    "Say something funny. I want to hear a joke. Please tell me a joke. Do you know any jokes?",
    "moon": "How far is the moon? How far away is the moon? What is the distance to the moon? "
    "Tell me how far the moon is. Is the moon far away? How long is the way to the moon? "
    "So how far is the moon? Can you tell me how far away the moon is?",
}


@dataclass(frozen=True)
class Role:
    """One of the agent's parts.

    Attributes:
        name: Of the role.
        answers: The sentence for each intent; ``{name}`` is the agent's.
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
    """Who the agent is in one dialogue; a teacher may have no name."""

    role: RoleName
    name: str | None
    prompt: str

    def answer(self, intent: str) -> str:
        """What this character says to an intent; of the other role's, that it does not know."""
        answers = ROLES[self.role].answers
        if self.name is None and intent in _UNNAMED_ANSWERS:
            return _UNNAMED_ANSWERS[intent]
        text = answers.get(intent, answers[REFUSAL])
        return text.format(name=self.name) if self.name else text


def draw_character(random: np.random.Generator, role: RoleName | None = None) -> Character:
    """A role, a name and a prompt that says both; the bots' own prompts among them."""
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


def wordings(intent: str, held_out: bool) -> list[str]:
    """How an intent is asked for, in training or in evaluation."""
    text = (SHARED | RESTAURANT | TEACHER)[intent]
    parts: list[str] = []
    for piece in text.replace("?", "?|").replace(".", ".|").split("|"):
        if piece.strip():
            parts.append(piece.strip())
    return parts[-_HELD_OUT:] if held_out else parts[:-_HELD_OUT]


def bare(word: str) -> str:
    """A word without case and punctuation."""
    return word.lower().strip(".,?!")


def caller_words() -> list[str]:
    """Every word of the training wordings."""
    known = SHARED | RESTAURANT | TEACHER
    texts = [text for intent in known for text in wordings(intent, held_out=False)]
    return sorted({bare(word) for text in texts for word in text.split()})


def intents(role: RoleName) -> list[str]:
    """Those that a role answers."""
    return [*SHARED, *(RESTAURANT if role == "restaurant" else TEACHER)]


def all_sentences() -> dict[str, str]:
    """Every sentence an agent can say, and the intent that it answers."""
    sentences = {text: intent for intent, text in _UNNAMED_ANSWERS.items()}
    for role in ROLES.values():
        for intent, text in role.answers.items():
            for name in NAMES if "{name}" in text else ("",):
                sentences[text.format(name=name)] = intent
    return sentences
