"""Tools for an LLM: their schema, and what wrong arguments and failures result in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated, Any, cast

import pytest
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.services.llm_service import FunctionCallParams
from pydantic import Field

from bots.tool_calls import Tool, call_id, tool
from bots.tool_problem import ToolProblem
from pipecat_personaplex.service.delegation.tool_schemas import DirectFunctionWrapper


async def use(
    function: Tool,
    arguments: dict[str, Any],
    tool_call_id: str = "1",
    context: LLMContext | None = None,
) -> Any:
    """Call a tool as Pipecat's LLM services do, in the first step of a conversation by default."""
    results: list[Any] = []

    async def result_callback(result: Any) -> None:
        results.append(result)

    params = SimpleNamespace(
        tool_call_id=tool_call_id,
        result_callback=result_callback,
        context=LLMContext() if context is None else context,
    )
    wrapper = DirectFunctionWrapper(function)
    await wrapper.invoke(arguments, cast(FunctionCallParams, params))
    [result] = results
    return result


class Counter:
    def __init__(self, start: int):
        self.total = start

    @tool
    async def count(
        self, params: FunctionCallParams, steps: Annotated[int, Field(ge=1, le=9)], why: str = ""
    ) -> Any:
        """Count on.

        Args:
            params: This tool call.
            steps: By how many.
            why: The reason.
        """
        if why == "overflow":
            raise ToolProblem("That is too far.")
        if why == "fault":
            raise ZeroDivisionError("of its own")
        self.total += steps
        return {"total": self.total, "why": why}


def test_the_schema_is_that_of_the_function() -> None:
    schema = DirectFunctionWrapper(Counter(0).count).to_function_schema()
    assert (schema.name, schema.description) == ("count", "Count on.")
    assert schema.required == ["steps"]
    assert schema.properties == {
        "steps": {"type": "integer", "description": "By how many."},
        "why": {"type": "string", "description": "The reason."},
    }


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"steps": 2, "why": "fun"}, {"total": 12, "why": "fun"}),
        ({"steps": "3"}, {"total": 13, "why": ""}),
        ({"steps": 3.0, "why": None}, {"total": 13, "why": ""}),
        ({"steps": 2, "why": "  padded "}, {"total": 12, "why": "padded"}),
    ],
)
async def test_arguments_are_converted(arguments: dict[str, Any], result: object) -> None:
    assert await use(Counter(10).count, arguments) == result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "steps: Field required"),
        ({"steps": None}, "steps: Field required"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"steps": 2.5}, "steps: Input should be a valid integer"),
        ({"steps": 10**9}, "steps: Input should be less than or equal to 9, not 1000000000"),
        ({"steps": -1}, "steps: Input should be greater than or equal to 1, not -1"),
        ({"steps": [1]}, "steps: Input should be a valid integer"),
        ({"steps": float("nan")}, "steps: Input should be"),
        ({"steps": 1, "why": {"a": 1}}, "why: Input should be a valid string"),
        (
            {"steps": 1, "speed": 2},
            "speed: there is no such argument; the arguments are steps, why",
        ),
        ({"steps": 1, "why": "overflow"}, "That is too far."),
        ({"steps": 1, "why": "fault"}, "failed for a reason of its own"),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_done(
    arguments: dict[str, Any], words: str
) -> None:
    counter = Counter(0)
    result = await use(counter.count, arguments)
    assert words in result["error"] and "\n" not in result["error"]
    assert counter.total == 0


async def test_a_tool_without_arguments() -> None:
    @tool
    async def ping(params: FunctionCallParams) -> str:
        """Answer."""
        return call_id(params)

    assert await use(ping, {}, "call_7") == await use(ping, {}, "call_7")
    assert await use(ping, {}, "call_7") != await use(ping, {}, "call_8")
    later = LLMContext([{"role": "user", "content": "Once more."}])
    assert await use(ping, {}, "call_7") != await use(ping, {}, "call_7", later)
    assert await use(ping, {}, "") != await use(ping, {}, ""), "an id for those who have none"
    assert "the arguments are none" in (await use(ping, {"x": 1}))["error"]
