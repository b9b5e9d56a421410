"""Tools for a backend LLM: functions whose arguments are checked before they run."""

from __future__ import annotations

import functools
import inspect
import typing
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from loguru import logger
from pipecat.services.llm_service import FunctionCallParams
from pydantic import ConfigDict, Field, ValidationError, create_model

from bots.tool_problem import ToolProblem

Tool = Callable[..., Awaitable[None]]
"""A function as ``LLMContext(tools=[...])`` takes it; it gives its result to a callback."""

_FAILED = "This tool has failed for a reason of its own. Nothing was changed. Try once more."


def tool(function: Callable[..., Awaitable[Any]]) -> Tool:
    """Make a direct function of Pipecat's from a function that returns its result.

    The function's first parameter is ``params``; the others are the arguments that an LLM gives,
    with types that may be ``Annotated`` with pydantic's constraints. The name, the docstring and
    the parameters are what the LLM reads.

    Numbers that arrive as strings are converted. An argument that is missing, unknown or out of
    range, and a ``ToolProblem`` that the function raises, become a result ``{"error": "..."}``
    that says what is wrong. Any other exception is logged, and its result is an error too.

    Args:
        function: An async function; may be a method.

    Example::

        @tool
        async def roll(params: FunctionCallParams, sides: Annotated[int, Field(ge=2)] = 6) -> int:
            "Roll a die."
            return random.randint(1, sides)

        context = LLMContext(tools=[roll])
    """
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    names = [name for name in parameters if name not in ("self", "params")]
    fields: dict[str, Any] = {
        name: (
            hints[name],
            Field()
            if parameters[name].default is inspect.Parameter.empty
            else Field(default=parameters[name].default),
        )
        for name in names
    }
    arguments_of = create_model(
        function.__name__,
        __config__=ConfigDict(extra="forbid", str_strip_whitespace=True),
        **fields,
    )

    @functools.wraps(function)
    async def call(*bound: Any, params: FunctionCallParams, **given: Any) -> None:
        try:
            # An LLM writes null for an argument that it leaves out.
            present = {name: value for name, value in given.items() if value is not None}
            checked = arguments_of.model_validate(present)
            values = {name: getattr(checked, name) for name in names}
            result = await function(*bound, params, **values)
        except ValidationError as error:
            result = {"error": _wrong_arguments(error, names)}
        except ToolProblem as problem:
            result = {"error": str(problem)}
        except Exception:
            logger.exception("the tool {} has failed", function.__name__)
            result = {"error": _FAILED}
        await params.result_callback(result)

    return call


def call_id(params: FunctionCallParams) -> str:
    """The id by which a repeated tool call is recognised; a new one where the server gives none.

    It counts within one step of the LLM only, because some servers give every tool call the same
    id. Pipecat adds a step's tool calls to the context's messages after it has started them all.
    """
    if not params.tool_call_id:
        return uuid.uuid4().hex
    return f"{params.tool_call_id} {len(params.context.get_messages())}"


def _wrong_arguments(error: ValidationError, names: list[str]) -> str:
    problems = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else "arguments"
        message = problem["msg"]
        if problem["type"] == "extra_forbidden":
            message = f"there is no such argument; the arguments are {', '.join(names) or 'none'}"
        elif problem["type"] != "missing":
            message += f", not {problem['input']!r:.40}"
        problems.append(f"{name}: {message}")
    return f"Nothing was done. {'; '.join(problems)}."
