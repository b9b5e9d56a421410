"""The menu: reading it from a TOML file, and finding the item that a caller means."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic import model_validator as validator

from pipecat_personaplex.errors import ConfigError

DEFAULT_MENU = Path(__file__).with_name("menu.toml")
ONE_SIZE = "regular"
"""The size of an item that has a single price."""
_SUGGESTIONS = 4

_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]
_Price = Annotated[Decimal, Field(ge=0, le=10_000, decimal_places=2)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: _Name
    description: str = ""
    also: list[_Name] = []
    stock: int = Field(ge=0, le=1_000_000)
    price: _Price | None = None
    prices: dict[_Name, _Price] = {}

    @validator(mode="after")
    def _has_a_price(self) -> _Entry:
        if (self.price is None) == (not self.prices):
            raise ValueError(f"{self.name!r} needs either price or prices")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    restaurant: _Name
    currency: str = "$"
    items: list[_Entry] = Field(min_length=1, max_length=500)


@dataclass(frozen=True)
class MenuItem:
    """Something to order.

    Attributes:
        name: The name on the receipt.
        description: What it is; may be empty.
        also: Other names that callers use.
        stock: How many are left.
        prices: Price in cents by size; ``{"regular": 950}`` for an item with one price.
    """

    name: str
    description: str
    also: tuple[str, ...]
    stock: int
    prices: dict[str, int]

    @property
    def has_one_price(self) -> bool:
        """Whether its price needs no size."""
        return self.prices.keys() == {ONE_SIZE}


@dataclass(frozen=True)
class Menu:
    """All items, with the restaurant's name and the sign of its currency."""

    restaurant: str
    currency: str
    items: tuple[MenuItem, ...]


def read_menu(path: Path = DEFAULT_MENU) -> Menu:
    """Read a menu from a TOML file; ``menu.toml`` in this folder shows the format.

    Raises:
        ConfigError: The file cannot be read, or is not a menu.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
        file = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "menu"
        raise ConfigError(f"the menu {path}: {place}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"the menu {path} cannot be read: {reason}") from None
    names = [_words(name) for entry in file.items for name in (entry.name, *entry.also)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"the menu {path}: two items are called {' '.join(name)!r}")
    return Menu(file.restaurant, file.currency, tuple(_item(entry) for entry in file.items))


def _item(entry: _Entry) -> MenuItem:
    prices = entry.prices if entry.price is None else {ONE_SIZE: entry.price}
    return MenuItem(
        entry.name,
        entry.description,
        tuple(entry.also),
        entry.stock,
        {size.lower(): int(price * 100) for size, price in prices.items()},
    )


def money(cents: int, currency: str) -> str:
    """An amount as it is printed: 950 -> ``$9.50``."""
    return f"{currency}{cents // 100}.{cents % 100:02d}"


def find_item(items: Sequence[MenuItem], spoken: str) -> list[MenuItem]:
    """The items that a caller may mean.

    Args:
        items: All items.
        spoken: What the caller said: a name, a part of one, or a name among other words.

    Returns:
        One item if the words identify it, several if they fit several, else none.
    """
    wanted = _words(spoken)
    if not wanted:
        return []
    names = {(item.name, _words(name)): item for item in items for name in (item.name, *item.also)}

    def matching(accept: str) -> list[MenuItem]:
        found = {}
        for (_, name), item in names.items():
            fits = {
                "equal": name == wanted,
                "part": set(wanted) <= set(name),
                "within": set(name) <= set(wanted),
            }
            if fits[accept]:
                found[item.name] = item
        return list(found.values())

    for accept in ("equal", "part", "within"):
        if found := matching(accept):
            return found
    return []


def nearest_names(items: Sequence[MenuItem], spoken: str) -> list[str]:
    """Names on the menu that resemble the caller's words; the first of the menu if none does."""
    by_word = {
        word: item.name
        for item in items
        for name in (item.name, *item.also)
        for word in (" ".join(_words(name)), *_words(name))
    }
    close = difflib.get_close_matches(" ".join(_words(spoken)), by_word, n=8, cutoff=0.5)
    names = list(dict.fromkeys(by_word[word] for word in close))
    return names[:_SUGGESTIONS] or [item.name for item in items[:_SUGGESTIONS]]


def size_in(item: MenuItem, spoken: str) -> str:
    """The size that the caller's words name, the longest one; empty if they name none."""
    named = [size for size in item.prices if set(_words(size)) <= set(_words(spoken))]
    return max(named, key=lambda size: len(_words(size)), default="")


def _words(text: str) -> tuple[str, ...]:
    """The words of a name, in small letters and without a plural's s."""
    words = re.findall(r"[^\W_]+", text.lower())
    return tuple(word[:-1] if len(word) > 3 and word.endswith("s") else word for word in words)
