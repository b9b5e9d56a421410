"""Ten concurrent calls that order through a backend: late frames, and every order exactly once.

``pytest -m measurement -s tests/bots/test_order_load.py`` runs two minutes. The variables
``PERSONAPLEX_LOAD_SECONDS``, ``PERSONAPLEX_LOAD_CALLERS`` and ``PERSONAPLEX_LOAD_MODEL`` change its
length, the number of callers, and the model (nano). The model runs in a server process. Pipelines,
voice activity detection, database and the rule-based LLM share another one: in one process with
them, the model waits for the interpreter's lock. The callers' words come from a script: ten
Whispers would need more than two cores.
"""

from __future__ import annotations

import asyncio
import collections
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from loguru import logger
from pipecat.services.openai.llm import OpenAILLMService

from bots.backends import Backends
from bots.drive_thru import take_order
from bots.order_window.desk import OrderDesk
from bots.order_window.menu import Menu, MenuItem
from bots.order_window.store import OrderStore
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.process import frozen_objects
from pipecat_personaplex.remote import RemoteEngine
from tests.helpers.callers import Caller, ScriptedStt
from tests.helpers.llm import Rule, StubLLM
from tests.helpers.servers import ServeProcess, eventually

SECONDS = float(os.environ.get("PERSONAPLEX_LOAD_SECONDS", "120"))
CALLERS = int(os.environ.get("PERSONAPLEX_LOAD_CALLERS", "10"))
MODEL = os.environ.get("PERSONAPLEX_LOAD_MODEL", "nano")
TURN_SECONDS = 6.0
LLM_SECONDS = 0.3
_QUIET = ("pipecat", "pipecat_personaplex")

TURNS = ("Two spicy, please.", "And a small coffee.", "Sorry, only one spicy.", "That is all.")
RULES = [
    Rule("only one", ">> One.", "change_order", {"item": "spicy", "quantity": 1}),
    Rule("two spicy", ">> Two.", "add_to_order", {"item": "spicy", "quantity": 2}),
    Rule("coffee", ">> Coffee.", "add_to_order", {"item": "coffee", "size": "small"}),
    Rule("that is all", ">> Placed.", "place_order"),
]
MENU = Menu(
    "Jerusalem Shakshuka",
    "$",
    (
        MenuItem("Spicy shakshuka", "", ("spicy",), 10_000, {"regular": 1025}),
        MenuItem("Coffee", "", (), 10_000, {"small": 250, "large": 350}),
    ),
)


@pytest.fixture
def as_a_bot() -> Iterator[None]:
    """As the bots do: exclude imported modules from garbage collection, and log little."""
    for name in _QUIET:
        logger.disable(name)
    with frozen_objects():
        yield
    for name in _QUIET:
        logger.enable(name)


@pytest.mark.measurement
@pytest.mark.timeout(SECONDS + 180)
async def test_ten_concurrent_calls(tmp_path: Path, as_a_bot: None) -> None:
    rounds = max(1, int(SECONDS / (TURN_SECONDS * len(TURNS))))
    store = OrderStore(tmp_path / "orders.db", MENU)
    with (
        ServeProcess("--model", MODEL, "--max-sessions", CALLERS) as server,
        RemoteEngine([server.ws_url]) as engine,
    ):
        eventually(lambda: engine.healthy)
        async with StubLLM(RULES, delay=LLM_SECONDS) as llm:
            options = {"api_key": "none", "base_url": llm.url}
            desk = OrderDesk(store, Backends(OpenAILLMService, "stub", options))
            await asyncio.gather(
                *(one_call(engine, desk, tmp_path, number, rounds) for number in range(CALLERS))
            )
            await desk.backends.close()
        stats = engine.stats()
        computed_late = server.counter("late_frames") / server.counter("frames")
    late = stats.late_frames / stats.frames
    placed = collections.Counter(order.call for order in store.latest(10_000) if order.placed)
    words = {str(order) for order in store.latest(10_000)}
    print(
        f"\n{CALLERS} calls, {rounds} orders each: {stats.frames} frames, {late:.2%} received "
        f"late, {computed_late:.2%} computed late; {placed.total()} orders placed"
    )
    assert placed == collections.Counter({call: rounds for call in placed})
    assert len(placed) == CALLERS and words == {"1 Spicy shakshuka, 1 small Coffee"}
    items = {item.name: item.stock for item in store.menu().items}
    assert set(items.values()) == {10_000 - CALLERS * rounds}
    store.close()
    assert late <= 0.01


async def one_call(
    engine: EngineLike, desk: OrderDesk, folder: Path, number: int, rounds: int
) -> None:
    """A call that begins a little after the one before, and orders several times."""
    await asyncio.sleep(number * TURN_SECONDS / CALLERS)
    script: list[tuple[float | Callable[[], object], str]] = [
        (2.0 + TURN_SECONDS * index, TURNS[index % len(TURNS)])
        for index in range(rounds * len(TURNS))
    ]
    stt, loop = ScriptedStt(script), asyncio.get_running_loop()
    latest = loop.time() + TURN_SECONDS * len(script) + 60

    def done() -> bool:
        over = stt.finished is not None and loop.time() > stt.finished + TURN_SECONDS
        return over or loop.time() > latest

    caller = Caller(np.zeros(0, np.int16), done)
    await take_order(caller.call(engine, folder), stt, desk)
