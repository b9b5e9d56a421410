"""A process that changes orders until it is killed: prints a line after each change."""

from __future__ import annotations

import sys
from pathlib import Path

from bots.order_window.menu import read_menu
from bots.order_window.store import OrderStore


def main(path: str, call: str) -> None:
    store = OrderStore(Path(path), read_menu())
    step = 0
    while True:
        order, part = divmod(step, 4)
        if part < 3:
            store.add(f"{call}-{order}", str(part), "tea", 1, note=f"cup {part}")
        else:
            store.place(f"{call}-{order}")
        step += 1
        print(step, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
