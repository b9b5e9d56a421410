"""The commands of docs/bots.md: their options exist and fit together, their SQL runs."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sqlite3
from pathlib import Path

import pytest

from bots.backends import choose_backend
from bots.options import BotParser
from bots.order_window.menu import read_menu
from bots.order_window.store import OrderStore
from tests.helpers.forking import ROOT

TEXT = (ROOT / "docs" / "bots.md").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [
    line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.split("\n")
]
INLINE = re.findall(r"`(python -m bots\.[^`]*)`", TEXT)
COMMANDS = sorted(
    {line.strip() for line in [*LINES, *INLINE] if line.startswith("python -m bots.")}
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI", "ANTHROPIC", "DAILY"):
        monkeypatch.setenv(f"{name}_API_KEY", "key of a test")
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC" + 32 * "0")
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "secret")
    for name in ("BACKEND", "BACKEND_URL", "BACKEND_MODEL", "STT", "STT_MODEL", "ENGINE"):
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)


def test_all_kinds_of_commands_are_found() -> None:
    text = "\n".join(COMMANDS)
    for option in (
        "--backend openai",
        "--backend ollama",
        "--documents",
        "--receipts",
        "-t twilio",
    ):
        assert option in text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_valid(command: str) -> None:
    module, *arguments = shlex.split(command.removeprefix("python -m "))
    bot = importlib.import_module(module)
    prepared: list[argparse.Namespace] = []
    parser = BotParser("A bot.", "You are a bot.", prepared.append)
    bot._extend(parser)
    parser.add_argument("-t", "--transport")
    parser.add_argument("-x", "--proxy")
    parser.add_argument("-d", "--direct", action="store_true")
    parser.add_argument("-v", "--verbose", action="count", default=0)
    args = parser.parse_args(arguments)
    assert prepared == [args]
    assert (choose_backend(args) is None) == (args.backend == "none")


def test_the_statement_that_fills_the_shelves(tmp_path: Path) -> None:
    [line] = [line for line in LINES if line.startswith("sqlite3 orders.db")]
    *_, statement = shlex.split(line)
    store = OrderStore(tmp_path / "orders.db", read_menu())
    store.add("a", "1", "spicy", 3)
    store.place("a")
    with sqlite3.connect(tmp_path / "orders.db") as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()
    assert {item.stock for item in store.menu().items if "Spicy" in item.name} == {40}
    store.close()
