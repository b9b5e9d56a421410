"""The SQLite file behind the order window: its schema, its creation and its transactions."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bots.order_window.menu import Menu
from pipecat_personaplex.errors import ConfigError

MAX_QUANTITY = 20
"""How many of one item an order may contain."""

# Marks the file as ours, so that another program's database is not written to.
_APPLICATION_ID = 0x50504F57
_VERSION = 1
# How long a transaction waits for one of another process.
_BUSY_SECONDS = 10.0

_SCHEMA = f"""
CREATE TABLE restaurant (name TEXT NOT NULL, currency TEXT NOT NULL) STRICT;
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE COLLATE NOCASE,
    description TEXT NOT NULL,
    also TEXT NOT NULL,  -- a JSON array of other names
    stock INTEGER NOT NULL CHECK (stock >= 0)
) STRICT;
CREATE TABLE prices (
    id INTEGER PRIMARY KEY,
    item INTEGER NOT NULL REFERENCES items (id),
    size TEXT NOT NULL,
    cents INTEGER NOT NULL CHECK (cents >= 0),
    UNIQUE (item, size)
) STRICT;
CREATE TABLE orders (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    call TEXT NOT NULL,
    opened TEXT NOT NULL,
    placed TEXT,
    total INTEGER,  -- of a placed order, in cents
    receipt TEXT,
    CHECK ((placed IS NULL) = (receipt IS NULL) AND (placed IS NULL) = (total IS NULL))
) STRICT;
CREATE UNIQUE INDEX one_open_order_a_call ON orders (call) WHERE placed IS NULL;
CREATE TABLE lines (
    id INTEGER PRIMARY KEY,
    "order" INTEGER NOT NULL REFERENCES orders (id),
    price INTEGER NOT NULL REFERENCES prices (id),
    note TEXT NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity BETWEEN 1 AND {MAX_QUANTITY}),
    cents INTEGER NOT NULL CHECK (cents >= 0),  -- of one, when it was ordered
    UNIQUE ("order", price, note)
) STRICT;
CREATE TABLE tool_calls (  -- answers, by which a repeated tool call is recognised
    call TEXT NOT NULL,
    id TEXT NOT NULL,
    request TEXT NOT NULL,
    answer TEXT NOT NULL,
    PRIMARY KEY (call, id, request)
) STRICT, WITHOUT ROWID;
"""


class Database:
    """One connection to the file, which threads share.

    Each transaction is on disk when its block ends (write-ahead log, one fsync), so neither a
    killed process nor a power failure loses it.

    Args:
        path: The file. It is created with the schema and the menu if it does not exist.
        menu: The menu of a new file; an existing file keeps its own.

    Raises:
        ConfigError: The file cannot be opened or created, or is not an order database.
    """

    def __init__(self, path: Path, menu: Menu):
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from None
        try:
            self._prepare(menu)
        except sqlite3.Error as error:
            self._connection.close()
            raise _unusable(path, error) from None
        except ConfigError:
            self._connection.close()
            raise

    def _prepare(self, menu: Menu) -> None:
        connection = self._connection
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        if self._belongs_to_others():
            raise ConfigError(
                f"{self.path} is a database of another program; give --orders another file"
            )
        connection.execute("PRAGMA journal_mode = WAL")
        with self.transaction():
            if self._pragma("user_version") == 0:
                _create(connection, menu)
        version = self._pragma("user_version")
        if version != _VERSION:
            raise ConfigError(
                f"{self.path} has version {version} of the order database; this bot needs "
                f"{_VERSION}"
            )

    def _belongs_to_others(self) -> bool:
        tables = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        return bool(tables) and self._pragma("application_id") != _APPLICATION_ID

    def _pragma(self, name: str) -> int:
        value: int = self._connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is committed at the end of its block, or undone by an error."""
        with self._lock:
            # IMMEDIATE: what is read here cannot be changed by others before it is written.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A consistent view of the file that does not wait for writers."""
        with self._lock:
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def _create(connection: sqlite3.Connection, menu: Menu) -> None:
    for statement in _SCHEMA.split(";\n"):  # executescript would commit the transaction
        connection.execute(statement)
    connection.execute("INSERT INTO restaurant VALUES (?, ?)", (menu.restaurant, menu.currency))
    for item in menu.items:
        row = connection.execute(
            "INSERT INTO items (name, description, also, stock) VALUES (?, ?, ?, ?)",
            (item.name, item.description, json.dumps(item.also), item.stock),
        )
        connection.executemany(
            "INSERT INTO prices (item, size, cents) VALUES (?, ?, ?)",
            [(row.lastrowid, size, cents) for size, cents in item.prices.items()],
        )
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {_VERSION}")


def _unusable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"--orders {path} cannot be used: {reason}")
