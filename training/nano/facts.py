"""Facts that a prompt may state: prices, closing time and street, written and spoken.

The agent's answers copy them. Each has at least 60 values, which a prompt combines at random; what
the prompt does not state, the agent does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_KNOWN_SHARE = 0.75
# Share of prompts with the facts of the bots' prompts, which most callers will ask about.
_STANDARD_SHARE = 0.35


@dataclass(frozen=True)
class Value:
    """One value of a fact: as a prompt writes it, and as the agent says it."""

    written: str
    spoken: str


def number_words(value: int) -> str:
    """A number below a million in words."""
    if value < len(_NUMBERS):
        return _NUMBERS[value]
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if value >= unit:
            rest = f" {number_words(value % unit)}" if value % unit else ""
            return f"{number_words(value // unit)} {name}{rest}"
    tens, ones = _TENS[value // 10 - 2], value % 10
    return f"{tens} {_NUMBERS[ones]}" if ones else tens


def _price(dollars: int, cents: int) -> Value:
    spoken = f"{number_words(dollars)} dollars"
    return Value(f"${dollars}.{cents:02}", f"{spoken} {number_words(cents)}" if cents else spoken)


def _time(hour: int, minute: int) -> Value:
    spoken, written = number_words(hour), str(hour)
    if minute:
        spoken, written = f"{spoken} {number_words(minute)}", f"{written}:{minute:02}"
    return Value(f"{written} pm", spoken)


PRICES = tuple(_price(dollars, cents) for dollars in range(4, 21) for cents in (0, 25, 50, 75))
TIMES = tuple(_time(hour, minute) for hour in range(1, 13) for minute in (0, 10, 15, 30, 45, 50))
STREETS = tuple(
    Value(street, street)
    for name in """
    Market Elm Oak Maple Cedar Pine River Lake Hill Church Station Bridge Mill Garden Spring Water
    Castle Harbor Forest Sunset Meadow Orchard Summer Winter Park School Cherry Willow Silver Golden
    Ocean Valley
    """.split()
    for street in (f"{name} Street", f"{name} Road")
)
EMPLOYERS = (
    *("Jerusalem Shakshuka", "Sunrise Kitchen", "The Golden Egg", "Pepper and Pan"),
    *(
        f"{first} {second}"
        for first in "Blue Lucky Little Royal Green Happy Corner Village".split()
        for second in "Pepper Garden Spoon Oven Table Tomato Plate Bakery".split()
    ),
)
"""Names of restaurants that a prompt may say the agent works for."""

FACTS: dict[str, tuple[Value, ...]] = {
    "price_classic": PRICES,
    "price_spicy": PRICES,
    "hours": TIMES,
    "location": STREETS,
}
"""The values of each fact, by the intent that asks for it."""

Known = Mapping[str, Value]
"""The facts that a prompt states, by intent."""

STANDARD: dict[str, Value] = {"price_classic": _price(9, 50), "price_spicy": _price(10, 25)}
"""The facts of the bots' own prompt."""
_STANDARD_TALK = {"hours": _time(10, 30), "location": Value("Market Street", "Market Street")}

_HOURS = ("Open until {}.", "We close at {}.", "Opening hours: until {}.")
_ADDRESSES = ("Address: {} {}.", "Our address is {} {}.")


def sample_facts(random: np.random.Generator) -> Known:
    """Sample the facts of a prompt; some are left out."""
    if random.random() < _STANDARD_SHARE:
        return STANDARD if random.random() < 0.5 else STANDARD | _STANDARD_TALK
    return {
        intent: values[int(random.integers(len(values)))]
        for intent, values in FACTS.items()
        if random.random() < _KNOWN_SHARE
    }


def information(known: Known, random: np.random.Generator | None = None) -> str:
    """The sentences of a prompt that state facts.

    Args:
        known: The facts.
        random: Chooses wordings, house number and order; without it, they are the same each time.
    """
    random = random or np.random.default_rng(0)
    classic, spicy = (
        f", {known[intent].written}" if intent in known else ""
        for intent in ("price_classic", "price_spicy")
    )
    sentences = [
        f"There are two shakshuka options: Classic (poached eggs{classic}) and Spicy (scrambled "
        f"eggs with jalapenos{spicy})."
    ]
    others = []
    if "hours" in known:
        others.append(str(random.choice(_HOURS)).format(known["hours"].written))
    if "location" in known:
        number = int(random.integers(1, 100))
        others.append(str(random.choice(_ADDRESSES)).format(number, known["location"].written))
    random.shuffle(others)
    return " ".join(sentences + others)
