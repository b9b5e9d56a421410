"""Reading menus, and finding the item that a caller means."""

from __future__ import annotations

from pathlib import Path

import pytest

from bots.order_window.menu import find_item, money, nearest_names, read_menu, size_in
from pipecat_personaplex.errors import ConfigError

ITEMS = read_menu().items


def test_the_menu_in_the_package() -> None:
    menu = read_menu()
    prices = {item.name: item.prices for item in menu.items}
    assert (menu.restaurant, menu.currency) == ("Jerusalem Shakshuka", "$")
    assert prices["Classic shakshuka"] == {"regular": 950}
    assert prices["Coffee"] == {"small": 250, "large": 350}
    assert all(item.stock for item in menu.items)


@pytest.mark.parametrize(
    ("spoken", "names"),
    [
        ("Spicy shakshuka", ["Spicy shakshuka"]),
        ("  SPICY ", ["Spicy shakshuka"]),
        ("the classics, please", ["Classic shakshuka"]),
        ("large coffees", ["Coffee"]),
        ("lemonade", ["Lemon juice"]),
        ("shakshuka", ["Classic shakshuka", "Spicy shakshuka"]),
        ("coffee and tea", ["Coffee", "Tea"]),
        ("pizza", []),
        ("?!", []),
        ("", []),
    ],
)
def test_words_of_a_caller_find_items(spoken: str, names: list[str]) -> None:
    assert [item.name for item in find_item(ITEMS, spoken)] == names


def test_nearest_names_resemble_what_was_heard() -> None:
    assert nearest_names(ITEMS, "spicey")[0] == "Spicy shakshuka"
    assert nearest_names(ITEMS, "coffy")[0] == "Coffee"
    assert nearest_names(ITEMS, "xylophone") == [item.name for item in ITEMS[:4]]


def test_a_size_among_the_words() -> None:
    coffee = next(item for item in ITEMS if item.name == "Coffee")
    assert size_in(coffee, "a Large coffee") == "large"
    assert size_in(coffee, "coffee") == ""


def test_money() -> None:
    assert [money(cents, "$") for cents in (0, 5, 950, 123_456)] == [
        "$0.00",
        "$0.05",
        "$9.50",
        "$1234.56",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("restaurant = ", "cannot be read"),
        ('restaurant = "R"\nitems = []', "items: List should have at least 1 item"),
        ('restaurant = "R"\nitems = [{name = "Tea", stock = 1}]', "either price or prices"),
        ('restaurant = "R"\nitems = [{name = "Tea", stock = -1, price = 1}]', "items.0.stock"),
        ('restaurant = "R"\nitems = [{name = "T", stock = 1, price = 1.005}]', "2 decimal"),
        ('restaurant = "R"\nitems = [{name = "T", stock = 1, price = "x"}]', "items.0.price"),
        ('restaurant = "R"\nitems = [{name = "T", stock = 1, cost = 1}]', "items.0.cost"),
        (
            'restaurant = "R"\nitems = [{name = "Tea", stock = 1, price = 1},\n'
            '{name = "Mint", also = ["teas"], stock = 1, price = 1}]',
            "two items are called 'tea'",
        ),
    ],
)
def test_a_wrong_menu_gives_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "menu.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        read_menu(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_a_menu_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_menu(tmp_path / "menu.toml")
