"""Facts that a prompt may state, from the employer to the street, written and spoken.

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
_KNOWN_SHARE = 0.8
# Share of prompts with the facts of the bots' prompts, which most callers will ask about.
_STANDARD_SHARE = 0.35


@dataclass(frozen=True)
class Value:
    """One value of a fact.

    Attributes:
        written: As a prompt writes it.
        parts: As the agent says it, in parts that are recorded each by itself. Values that begin
            alike share their first part, whose sound so tells nothing about the second.
    """

    written: str
    parts: tuple[str, ...]

    @classmethod
    def same(cls, *parts: str) -> Value:
        """A value that is written as it is said."""
        return cls(" ".join(parts), parts)

    @property
    def spoken(self) -> str:
        """All that the agent says."""
        return " ".join(self.parts)


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
    parts = f"{number_words(dollars)} dollars", number_words(cents)
    return Value(f"${dollars}.{cents:02}", parts if cents else parts[:1])


def _time(hour: int, minute: int) -> Value:
    parts = number_words(hour), number_words(minute)
    if minute:
        return Value(f"{hour}:{minute:02} pm", parts)
    return Value(f"{hour} pm", parts[:1])


PRICES = tuple(_price(dollars, cents) for dollars in range(4, 21) for cents in (0, 25, 50, 75))
TIMES = tuple(_time(hour, minute) for hour in range(1, 13) for minute in (0, 10, 15, 30, 45, 50))
STREETS = tuple(
    Value.same(name, kind)
    for name in """
    Market Elm Oak Maple Cedar Pine River Lake Hill Church Station Bridge Mill Garden Spring Water
    Castle Harbor Forest Sunset Meadow Orchard Summer Winter Park School Cherry Willow Silver Golden
    Ocean Valley
    """.split()
    for kind in ("Street", "Road")
)
EMPLOYERS = (
    Value.same("Jerusalem Shakshuka"),
    Value.same("Sunrise Kitchen"),
    Value.same("The Golden Egg"),
    Value.same("Pepper and Pan"),
    *(
        Value.same(first, second)
        for first in "Blue Lucky Little Royal Green Happy Corner Village".split()
        for second in "Pepper Garden Spoon Oven Table Tomato Plate Bakery".split()
    ),
)
DISHES = tuple(
    Value.same(dish)
    for dish in """
    shakshuka curry soup stew pizza pasta burger salad sandwich omelet taco burrito wrap pie chili
    risotto lasagna ramen kebab falafel hummus paella goulash gumbo quiche pancake waffle toast
    bagel sushi rice chicken salmon steak tofu dumpling porridge crepe roast casserole potato
    mushroom lentil lobster shrimp turkey duck lamb sausage meatball tortilla spaghetti macaroni
    cabbage corn pumpkin tomato cheese fish noodle vegetable bean
    """.split()
)
# No word may stand in two places: the model finds a value by its kind.
_MILD = "beans barley broccoli carrots peas kale spinach mushrooms".split()
_MILD_TOO = "onions potatoes cream butter honey olives nuts lemons".split()
_HOT = "bread bacon salami lentils apples plums leeks zucchini celery cucumber fennel".split()
_HOT_TOO = "jalapenos vinegar ginger garlic mustard pepper".split()
MILD_CONTENTS = (
    Value.same("poached eggs"),
    *(Value.same(first, f"and {second}") for first in _MILD for second in _MILD_TOO),
)
HOT_CONTENTS = (
    Value.same("scrambled eggs with jalapenos"),
    *(Value.same(first, f"with {second}") for first in _HOT for second in _HOT_TOO),
)
FACTS: dict[str, tuple[Value, ...]] = {
    "employer": EMPLOYERS,
    "dish": DISHES,
    "in_classic": MILD_CONTENTS,
    "in_spicy": HOT_CONTENTS,
    "price_classic": PRICES,
    "price_spicy": PRICES,
    "hours": TIMES,
    "location": STREETS,
}
"""The values of each fact."""

IN_BRACKETS = ("in_classic", "in_spicy", "price_classic", "price_spicy")
"""Facts that a prompt may write right after a bracket, without a space."""

Known = Mapping[str, Value]
"""What a prompt states, by the name of the fact."""

STANDARD: dict[str, Value] = {
    "employer": EMPLOYERS[0],
    "dish": DISHES[0],
    "in_classic": MILD_CONTENTS[0],
    "in_spicy": HOT_CONTENTS[0],
    "price_classic": _price(9, 50),
    "price_spicy": _price(10, 25),
}
"""The facts of the bots' own prompt."""
_STANDARD_TALK = {"hours": _time(10, 30), "location": Value.same("Market", "Street")}

_HOURS = ("Open until {}.", "We close at {}.", "Opening hours: until {}.")
_ADDRESSES = ("Address: {} {}.", "Our address is {} {}.")


def sample_facts(random: np.random.Generator) -> Known:
    """Sample what a prompt states: always an employer; others may be left out."""
    if random.random() < _STANDARD_SHARE:
        return STANDARD if random.random() < 0.5 else STANDARD | _STANDARD_TALK
    known = {
        fact: values[int(random.integers(len(values)))]
        for fact, values in FACTS.items()
        if fact == "employer" or random.random() < _KNOWN_SHARE
    }
    # Contents and prices stand in the sentence that names the dish.
    return {
        fact: value
        for fact, value in known.items()
        if "dish" in known or not fact.startswith(("in_", "price_"))
    }


def information(known: Known, random: np.random.Generator | None = None) -> str:
    """The sentences of a prompt that state facts, but for the employer.

    Args:
        known: The facts.
        random: Chooses wordings, house number and order; without it, they are the same each time.
    """
    random = random or np.random.default_rng(0)
    menu, others = [], []
    if "dish" in known:
        options = []
        for name in ("classic", "spicy"):
            facts = (f"{kind}_{name}" for kind in ("in", "price"))
            stated = ", ".join(known[fact].written for fact in facts if fact in known)
            options.append(f"{name.capitalize()} ({stated})" if stated else name.capitalize())
        menu.append(
            f"There are two {known['dish'].written} options: {options[0]} and {options[1]}."
        )
    if "hours" in known:
        others.append(str(random.choice(_HOURS)).format(known["hours"].written))
    if "location" in known:
        number = int(random.integers(1, 100))
        others.append(str(random.choice(_ADDRESSES)).format(number, known["location"].written))
    random.shuffle(others)
    return " ".join(menu + others)
