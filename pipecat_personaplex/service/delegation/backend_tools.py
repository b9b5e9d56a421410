"""Tools that were given to the service, for the backend to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipecat.processors.aggregators.llm_context import LLMContext, is_given

from pipecat_personaplex.service.delegation.backend_link import BackendLLMWorker
from pipecat_personaplex.service.delegation.tool_schemas import (
    DirectFunction,
    FunctionSchema,
    ToolsSchema,
)

Tool = FunctionSchema | DirectFunction


class BackendTools:
    """Passes functions and tools of the service on to its backend.

    Args:
        worker: The backend; None if it is registered elsewhere, and its tools must be there.
        warn: Called with one line if tools cannot be passed on.
    """

    def __init__(self, worker: BackendLLMWorker | None, warn: Callable[[str], None]):
        self._worker = worker
        self._warn = warn
        self._warned = False
        self._own = [] if worker is None else _tools_of(worker.context)
        self._passed_on: list[Tool] = []
        self._registered: dict[str | None, tuple[Any, dict[str, Any]]] = {}

    @property
    def texts(self) -> list[str]:
        """Name and description of each tool."""
        schemas = _schemas([*self._own, *self._passed_on])
        return [f"{name.replace('_', ' ')} {schema.description}" for name, schema in schemas]

    def register(self, name: str | None, handler: Any, options: dict[str, Any]) -> None:
        """Have the backend call this handler; as ``LLMService.register_function``."""
        self._registered[name] = handler, options

    def pass_on(self, context: LLMContext) -> None:
        """Offer the tools of the service's context, and registered functions, to the backend.

        A tool of the backend's own context has precedence over one of the same name.
        """
        given = _tools_of(context)
        registered, self._registered = self._registered, {}
        if self._worker is None:
            if (given or registered) and not self._warned:
                self._warned = True
                self._warn("tools have no effect here: give them to the backend worker itself")
            return
        for name, (handler, options) in registered.items():
            # A schema that carries its handler registers itself.
            if all(handler is not schema.handler for _, schema in _schemas(given)):
                self._worker.llm.register_function(name, handler, **options)
        if given != self._passed_on:
            self._passed_on = given
            own = {name for name, _ in _schemas(self._own)}
            added = [tool for tool in given if _name(tool) not in own]
            self._worker.context.set_tools(ToolsSchema(standard_tools=[*self._own, *added]))


def _tools_of(context: LLMContext) -> list[Tool]:
    """The tools of a context, direct functions as such: their schemas have no handler."""
    tools = context.tools
    if not is_given(tools) or tools is None:
        return []
    direct = {wrapper.name: wrapper.function for wrapper in tools.direct_functions}
    return [direct.get(schema.name, schema) for schema in tools.standard_tools]


def _schemas(tools: list[Tool]) -> list[tuple[str, FunctionSchema]]:
    return [(schema.name, schema) for schema in ToolsSchema(standard_tools=tools).standard_tools]


def _name(tool: Tool) -> str:
    return _schemas([tool])[0][0]
