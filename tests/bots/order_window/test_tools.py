"""The order window's tools, called as an LLM does."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from pipecat.frames.frames import FunctionCallFromLLM, FunctionCallResultFrame, LLMContextFrame
from pipecat.processors.aggregators.llm_context import LLMContext, LLMContextMessage
from pipecat.processors.aggregators.llm_response_universal import LLMAssistantAggregator

from bots.order_window.order import Order
from bots.order_window.store import OrderStore
from bots.order_window.tools import OrderTools
from pipecat_personaplex.service.delegation.tool_schemas import DirectFunctionWrapper
from tests.bots.test_tool_calls import use
from tests.helpers.llm import StubLLM
from tests.helpers.pipelines import RunningPipeline


class Caller:
    """The tools of one call by their names, and the orders that were shown."""

    def __init__(self, store: OrderStore, call: str = "call"):
        self.shown: list[Order] = []
        self.tools = OrderTools(store, call, self._show)
        self.context = LLMContext()
        self._ids = 0

    async def _show(self, order: Order) -> None:
        self.shown.append(order)

    async def use(self, name: str, tool_call_id: str | None = None, /, **arguments: Any) -> Any:
        self._ids += 1
        tool_call_id = tool_call_id or f"id-{self._ids}"
        return await use(getattr(self.tools, name), arguments, tool_call_id, self.context)


def test_an_llm_reads_names_descriptions_and_arguments(store: OrderStore) -> None:
    schemas = {
        schema.name: schema
        for function in Caller(store).tools.all
        for schema in [DirectFunctionWrapper(function).to_function_schema()]
    }
    assert list(schemas) == [
        *("look_up_item", "add_to_order", "change_order", "read_back_order", "place_order")
    ]
    add = schemas["add_to_order"]
    assert add.required == ["item"]
    assert add.properties["quantity"] == {
        "type": "integer",
        "description": "How many to add.",
    }
    assert all(schema.description for schema in schemas.values())


async def test_a_whole_order(store: OrderStore) -> None:
    caller = Caller(store)
    menu = await caller.use("look_up_item")
    assert len(menu["items"]) == 5
    added = await caller.use("add_to_order", item="spicy", quantity="2")
    assert added == {
        "result": "Added 2 Spicy shakshuka.",
        "order": ["2 Spicy shakshuka"],
        "total": "$20.50",
    }
    await caller.use("add_to_order", item="coffee", size="small", note="no sugar")
    await caller.use("change_order", item="spicy", quantity=1)
    read = await caller.use("read_back_order")
    assert read["order"] == ["1 Spicy shakshuka", "1 small Coffee (no sugar)"]
    assert not read["placed"]
    placed = await caller.use("place_order")
    assert "The total is $12.75." in placed["result"]
    assert (await caller.use("read_back_order"))["placed"]
    messages = [order.as_message() for order in caller.shown]
    assert [message["total"] for message in messages] == ["$20.50", "$23.00", "$12.75", "$12.75"]
    assert [message["state"] for message in messages] == ["open", "open", "open", "placed"]
    assert messages[0]["lines"] == [
        {
            "item": "Spicy shakshuka",
            "size": "regular",
            "note": "",
            "quantity": 2,
            "cents": 1025,
            "price": "$20.50",
        }
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("add_to_order", {"item": "tea", "quantity": -3}, "greater than or equal to 1, not -3"),
        ("add_to_order", {"item": "tea", "quantity": 10**9}, "less than or equal to 20"),
        ("add_to_order", {"item": "tea", "quantity": "a dozen"}, "valid integer"),
        ("add_to_order", {"item": 7}, "item: Input should be a valid string, not 7"),
        ("add_to_order", {"item": " "}, "item: String should have at least 1 character"),
        ("add_to_order", {"item": "tea" * 999}, "item: String should have at most 80"),
        ("add_to_order", {"item": "tea", "size": "extra large"}, "one size only"),
        ("add_to_order", {"item": "coffee", "size": "huge"}, "no size 'huge'. Ask which one"),
        ("add_to_order", {"item": "'; DROP TABLE orders; --"}, "on the menu. The nearest is"),
        ("add_to_order", {"name": "tea"}, "item: Field required; name: there is no such argument"),
        ("change_order", {"item": "tea", "quantity": 1}, "It contains nothing."),
        ("change_order", {"item": "tea"}, "quantity: Field required"),
        ("look_up_item", {"item": "pizza"}, "no 'pizza'"),
        ("read_back_order", {}, "The order is empty."),
        ("place_order", {}, "The order is empty. Add something first."),
    ],
)
async def test_bad_arguments_give_a_sentence_and_change_nothing(
    store: OrderStore, name: str, arguments: dict[str, Any], words: str
) -> None:
    caller = Caller(store)
    result = await caller.use(name, **arguments)
    assert words in result["error"]
    assert caller.shown == [] and store.latest(9) == []


async def test_concurrent_callers_and_repeated_tool_calls(store: OrderStore) -> None:
    callers = [Caller(store, f"call-{index}") for index in range(10)]

    async def order(caller: Caller) -> None:
        for item in ("tea", "spicy", "classic"):
            adding = [caller.use("add_to_order", item, item=item) for _ in range(2)]
            await asyncio.gather(*adding)
        await asyncio.gather(caller.use("place_order", "place"), caller.use("place_order", "again"))

    await asyncio.gather(*map(order, callers))
    orders = store.latest(100)
    assert len(orders) == len(store.receipts()) == 10
    assert {str(order) for order in orders} == {"1 Tea, 1 Spicy shakshuka, 1 Classic shakshuka"}
    assert {item.stock for item in store.menu().items if item.name != "Coffee"} == {90, 30, 60}


def has_results(pipeline: RunningPipeline, calls: int) -> bool:
    """Whether so many tool calls have ended; Pipecat sends their results upstream, too."""
    return sum(isinstance(frame, FunctionCallResultFrame) for frame in pipeline.up) >= calls


async def test_a_server_that_gives_every_tool_call_the_same_id(store: OrderStore) -> None:
    """As Pipecat calls tools: a call that is repeated within a step changes nothing."""
    greeting: LLMContextMessage = {"role": "user", "content": "Hello."}
    context = LLMContext([greeting], tools=[*Caller(store).tools.all])
    steps: list[list[tuple[str, dict[str, Any]]]] = [
        [("add_to_order", {"item": "tea"})] * 5,
        [("change_order", {"item": "tea", "quantity": 0})],
        [("add_to_order", {"item": "tea"}), ("add_to_order", {"item": "spicy"})],
        [("place_order", {})],
        [("add_to_order", {"item": "tea"})],
    ]

    async with StubLLM() as stub:
        llm = stub.service()
        async with RunningPipeline([llm, LLMAssistantAggregator(context)]) as pipeline:
            await pipeline.send(LLMContextFrame(context))  # registers the tools
            await pipeline.until(lambda: context.get_messages()[1:])
            calls = 0
            for step in steps:
                await llm.run_function_calls(
                    [FunctionCallFromLLM(name, "call_0", given, context) for name, given in step]
                )
                calls += len(step)
                await pipeline.until(partial(has_results, pipeline, calls))
    assert [str(order) for order in store.latest(9)] == ["1 Tea", "1 Tea, 1 Spicy shakshuka"]


async def test_a_page_that_is_gone_does_not_undo_a_change(store: OrderStore) -> None:
    async def show(order: Order) -> None:
        raise ConnectionError("gone")

    result = await use(OrderTools(store, "a", show).add_to_order, {"item": "tea"})
    assert result["result"] == "Added 1 Tea."


async def test_a_failing_file_is_an_error_for_the_llm(store: OrderStore) -> None:
    caller = Caller(store)
    store._database.close()
    result = await caller.use("add_to_order", item="tea")
    assert "Nothing was changed" in result["error"] and caller.shown == []
