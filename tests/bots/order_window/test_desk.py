"""The order window behind the calls: options, roles, and where its page is served."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from pipecat.runner import run as runner

from bots.backends import Backends
from bots.order_window.desk import OrderDesk, add_order_options, open_desk, print_receipts
from bots.order_window.menu import Menu, MenuItem, read_menu
from bots.order_window.store import OrderStore
from pipecat_personaplex.errors import ConfigError

NO_BACKENDS = cast(Backends, None)
SOUP = 'restaurant = "Soup Bar"\ncurrency = "€"\nitems = [{name = "Soup", stock = 1, price = 3}]'


class Desks:
    """Opens desks with options, on an app of their own."""

    def __init__(self, app: FastAPI):
        self.app = app
        self.opened: list[OrderDesk] = []

    def open(self, *arguments: str, transport: str = "webrtc") -> OrderDesk:
        parser = argparse.ArgumentParser()
        add_order_options(parser)
        args = parser.parse_args(arguments)
        args.transport = transport
        desk = open_desk(args, NO_BACKENDS)
        self.opened.append(desk)
        return desk

    @property
    def paths(self) -> set[Any]:
        return {getattr(route, "path", None) for route in self.app.routes}


@pytest.fixture
def desks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desks]:
    for name in ("ORDERS", "MENU"):
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)
    app = FastAPI()
    monkeypatch.setattr(runner, "app", app)
    desks = Desks(app)
    yield desks
    for desk in desks.opened:
        desk.store.close()


def test_a_menu_of_ones_own_is_for_a_new_file(desks: Desks, tmp_path: Path) -> None:
    path, menu = tmp_path / "orders.db", tmp_path / "menu.toml"
    menu.write_text(SOUP, encoding="utf-8")
    options = ("--orders", str(path), "--menu", str(menu))
    desk = desks.open(*options)
    role = "You work for Soup Bar which is a restaurant and your name is Ann."
    assert desk.role("Ann") == f"{role} Information: We have Soup (€3.00)."
    menu.write_text(SOUP.replace("price = 3", "price = 4"), encoding="utf-8")
    assert desks.open(*options).store.menu().items[0].prices == {"regular": 300}


def test_the_page_is_not_served_to_the_internet(desks: Desks, tmp_path: Path) -> None:
    path = str(tmp_path / "orders.db")
    desks.open("--orders", path, transport="twilio")
    assert "/orders" not in desks.paths
    desks.open("--orders", path)
    assert {"/orders", "/orders/data"} <= desks.paths


def test_a_long_menu_is_left_to_the_tools(tmp_path: Path) -> None:
    items = tuple(MenuItem(f"Dish number {n}", "", (), 1, {"regular": n}) for n in range(40))
    store = OrderStore(tmp_path / "orders.db", Menu("R", "$", items))
    desk = OrderDesk(store, NO_BACKENDS)
    assert desk.role("Ann") == "You work for R which is a restaurant and your name is Ann."
    store.close()


def test_receipts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "orders.db"
    with pytest.raises(ConfigError, match="there is no file"):
        print_receipts(path)
    assert not path.exists()
    store = OrderStore(path, read_menu())
    print_receipts(path)
    assert "no order has been placed yet" in capsys.readouterr().out
    for call in ("a", "b"):
        store.add(call, "1", "tea", 2)
        store.place(call)
    store.close()
    print_receipts(path)
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("Jerusalem Shakshuka") == 2
    assert all(len(line) <= 40 for line in lines)
    assert lines[3].split() == ["2", "Tea", "$4.50"]
