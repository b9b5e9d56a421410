"""The order window's tools, as a backend LLM calls them in one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from loguru import logger
from pipecat.services.llm_service import FunctionCallParams
from pydantic import Field, StringConstraints

from bots.order_window.database import MAX_QUANTITY
from bots.order_window.order import Order
from bots.order_window.store import OrderStore
from bots.tool_calls import Tool, call_id, tool
from bots.tool_problem import ToolProblem

_Item = Annotated[str, StringConstraints(min_length=1, max_length=80)]
_AnyItem = Annotated[str, StringConstraints(max_length=80)]
_Size = Annotated[str, StringConstraints(max_length=20)]
_Note = Annotated[str, StringConstraints(max_length=80)]
_Added = Annotated[int, Field(ge=1, le=MAX_QUANTITY)]
_Quantity = Annotated[int, Field(ge=0, le=MAX_QUANTITY)]


class OrderTools:
    """The tools of one call.

    Args:
        store: Menu, stock and orders.
        call: Identifies the call; its order belongs to this name.
        on_order: Called with the order after each change.

    Example::

        tools = OrderTools(store, call_name, show)
        backend = BackendLLMWorker(llm=llm, context=LLMContext(tools=tools.all))
    """

    def __init__(self, store: OrderStore, call: str, on_order: Callable[[Order], Awaitable[None]]):
        self._store = store
        self._call = call
        self._on_order = on_order

    @property
    def all(self) -> list[Tool]:
        """The tools, for ``LLMContext(tools=...)``."""
        return [
            self.look_up_item,
            self.add_to_order,
            self.change_order,
            self.read_back_order,
            self.place_order,
        ]

    @tool
    async def look_up_item(self, params: FunctionCallParams, item: _AnyItem = "") -> dict[str, Any]:
        """Look up what an item is, what it costs, in which sizes, and how many are left.

        Args:
            params: This tool call.
            item: Name of the item, or a part of it. Leave it empty for the whole menu.
        """
        return await self._store.run(self._store.look_up, item)

    @tool
    async def add_to_order(
        self,
        params: FunctionCallParams,
        item: _Item,
        quantity: _Added = 1,
        size: _Size = "",
        note: _Note = "",
    ) -> dict[str, Any]:
        """Add something to the caller's order. The result contains the whole order.

        Args:
            params: This tool call.
            item: Name of the item, as on the menu.
            quantity: How many to add.
            size: The size, for an item with several sizes. Leave it empty otherwise.
            note: The caller's wish for this item, such as "no onions". Leave it empty otherwise.
        """
        return await self._changed(self._store.add, call_id(params), item, quantity, size, note)

    @tool
    async def change_order(
        self,
        params: FunctionCallParams,
        item: _Item,
        quantity: _Quantity,
        size: _Size = "",
        note: _Note = "",
    ) -> dict[str, Any]:
        """Set how many of an item the order contains. The result contains the whole order.

        Args:
            params: This tool call.
            item: Name of the item, as on the menu.
            quantity: How many the order shall contain from now on; 0 takes the item off.
            size: The size, if the order contains several sizes of the item.
            note: The note of the line that is meant, if the order contains the item several times;
                "none" for the line without a note.
        """
        return await self._changed(self._store.change, call_id(params), item, quantity, size, note)

    @tool
    async def read_back_order(self, params: FunctionCallParams) -> dict[str, Any]:
        """Read what the caller has ordered so far, and the total."""
        order = await self._store.run(self._store.order, self._call)
        if order is None:
            raise ToolProblem("The order is empty.")
        return {"placed": bool(order.placed), **order.as_result()}

    @tool
    async def place_order(self, params: FunctionCallParams) -> dict[str, Any]:
        """Place the order once the caller has confirmed it. It cannot be changed afterwards."""
        result = await self._changed(self._store.place)
        logger.info("{}", result["result"])
        return result

    async def _changed(
        self, change: Callable[..., dict[str, Any]], *arguments: object
    ) -> dict[str, Any]:
        result = await self._store.run(change, self._call, *arguments)
        try:
            order = await self._store.run(self._store.current, self._call)
            if order is not None:
                await self._on_order(order)
        except Exception as error:  # the change is made, whether a page shows it or not
            logger.warning("the order cannot be shown: {!r}", error)
        return result
