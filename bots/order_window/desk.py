"""The order window behind a call: the agent's prompt, the backend's instructions, the database."""

from __future__ import annotations

import argparse
import atexit
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from loguru import logger
from pipecat.runner import run as runner
from pipecat.workers.llm.backend_llm_worker import BackendLLMWorker

from bots.backends import Backends
from bots.order_window.menu import DEFAULT_MENU, Menu, MenuItem, money, read_menu
from bots.order_window.order import Order
from bots.order_window.page import PAGE, add_order_page
from bots.order_window.store import OrderStore
from bots.order_window.tools import OrderTools
from pipecat_personaplex.errors import ConfigError

# Every token of the agent's role takes a frame of the model's memory. A longer menu is left to the
# backend's tools.
_MAX_MENU_CHARACTERS = 500

_INSTRUCTIONS = """\
You take the orders of the restaurant {restaurant}. The caller talks with the assistant; you do the
work.

- When the caller wants something, add it with add_to_order. When they correct themselves, change
  their mind or take something off, use change_order. Do it at once, without a confirmation.
- Take prices, sizes and what is left from the menu below or from look_up_item. Never guess.
- When the caller says that this is all, read back the order with its total, and ask whether it is
  right. Call place_order only after the caller has confirmed.
- If a tool returns an error, do what it says, or ask the caller the question that it names.
- After a cancelled or failed tool, call read_back_order before you do anything else.
- After each change, tell the caller in one short sentence what you have noted.
- The caller's words come from speech recognition: a word that sounds like an item of the menu
  probably means that item. Ask if you are not sure.

The menu: {menu}"""


@dataclass(frozen=True)
class OrderDesk:
    """What all calls of an order window share.

    Attributes:
        store: Menu, stock and orders.
        backends: Creates the backend of each call.
    """

    store: OrderStore
    backends: Backends

    def role(self, agent: str) -> str:
        """The prompt of an agent of this name, with the menu if it is short."""
        menu = self.store.menu()
        role = f"You work for {menu.restaurant} which is a restaurant and your name is {agent}."
        described = describe(menu)
        if len(described) > _MAX_MENU_CHARACTERS:
            return role
        return f"{role} Information: We have {described}."

    async def backend(
        self, call: str, on_order: Callable[[Order], Awaitable[None]]
    ) -> BackendLLMWorker:
        """The backend of one call.

        Args:
            call: Identifies the call in the database.
            on_order: Called with the order after each change.
        """
        menu = await self.store.run(self.store.menu)
        instructions = _INSTRUCTIONS.format(restaurant=menu.restaurant, menu=describe(menu))
        return self.backends.create(instructions, OrderTools(self.store, call, on_order).all)


def describe(menu: Menu) -> str:
    """The menu as one sentence."""
    return ", ".join(_described(item, menu.currency) for item in menu.items)


def _described(item: MenuItem, currency: str) -> str:
    prices = [
        money(cents, currency) if item.has_one_price else f"{size} {money(cents, currency)}"
        for size, cents in item.prices.items()
    ]
    return f"{item.name} ({', '.join([item.description, *prices] if item.description else prices)})"


def add_order_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--orders``, ``--menu`` and ``--receipts``."""
    parser.add_argument(
        "--orders",
        metavar="FILE",
        default=os.environ.get("PERSONAPLEX_ORDERS") or "orders.db",
        help="with --backend: the SQLite file with menu, stock and orders; created if it does not "
        "exist (default: orders.db; environment: PERSONAPLEX_ORDERS)",
    )
    parser.add_argument(
        "--menu",
        metavar="FILE",
        default=os.environ.get("PERSONAPLEX_MENU") or None,
        help="the menu of a new --orders file, in TOML; bots/order_window/menu.toml is an example "
        "and the default (environment: PERSONAPLEX_MENU)",
    )
    parser.add_argument(
        "--receipts",
        action="store_true",
        help="print the receipts of all placed orders, and exit",
    )


def print_receipts(path: Path) -> None:
    """Print the receipts of a database, the oldest first.

    Raises:
        ConfigError: There is no such database.
    """
    if not path.exists():
        raise ConfigError(f"--receipts: there is no file {path}; --orders names another one")
    store = OrderStore(path, read_menu())
    print("\n\n".join(store.receipts()) or "no order has been placed yet")
    store.close()


def open_desk(args: argparse.Namespace, backends: Backends) -> OrderDesk:
    """Open or create the database, and serve the page with its orders, except on the telephone.

    Raises:
        ConfigError: The database or the menu cannot be used.
    """
    path = Path(args.orders)
    if args.menu and path.exists():
        logger.info("{} has its own menu; --menu is not read", path)
    menu = read_menu(Path(args.menu) if args.menu and not path.exists() else DEFAULT_MENU)
    store = OrderStore(path, menu)
    atexit.register(store.close)
    if args.transport == "twilio":  # the whole internet reaches this bot's port
        logger.info("orders are in {}", path)
    else:
        add_order_page(runner.app, store)
        logger.info("orders are in {}, and on the page {}", path, PAGE)
    return OrderDesk(store, backends)
