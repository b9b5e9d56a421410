"""Tools that were given to the service, for the backend to call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipecat.processors.aggregators.llm_context import LLMContext, is_given

from pipecat_personaplex.service.delegation.backend_link import BackendLLMWorker
from pipecat_personaplex.service.delegation.tool_schemas import (
    AdapterType,
    DirectFunction,
    FunctionSchema,
    ToolsSchema,
)

Custom = tuple[AdapterType, dict[str, Any]]
"""A tool in the form of one kind of LLM, such as its search of the web."""

Tool = FunctionSchema | DirectFunction | Custom


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
        self._passed_on: list[Tool] = []
        self._registered: dict[str | None, tuple[Any, dict[str, Any]]] = {}

    @property
    def texts(self) -> list[str]:
        """Name and description of each tool."""
        schemas = [] if self._worker is None else _schemas(_tools_of(self._worker.context))
        return [f"{each.name.replace('_', ' ')} {each.description}" for each in schemas]

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
            if all(handler is not schema.handler for schema in _schemas(given)):
                self._worker.llm.register_function(name, handler, **options)
        # The application may have changed the backend's own tools since the last time.
        offered = _tools_of(self._worker.context)
        own = [tool for tool in offered if tool not in self._passed_on]
        names = {schema.name for schema in _schemas(own)}
        self._passed_on = [
            tool
            for tool in given
            if tool not in own and names.isdisjoint(each.name for each in _schemas([tool]))
        ]
        wanted = [*own, *self._passed_on]
        if not _same(wanted, offered):
            self._worker.context.set_tools(_as_schema(wanted))


def _tools_of(context: LLMContext) -> list[Tool]:
    """The tools of a context, direct functions as such: their schemas have no handler."""
    tools = context.tools
    if not is_given(tools) or tools is None:
        return []
    direct = {wrapper.name: wrapper.function for wrapper in tools.direct_functions}
    custom = (tools.custom_tools or {}).items()
    return [
        *(direct.get(schema.name, schema) for schema in tools.standard_tools),
        *((adapter, tool) for adapter, listed in custom for tool in listed),
    ]


def _as_schema(tools: list[Tool]) -> ToolsSchema:
    custom: dict[AdapterType, list[dict[str, Any]]] = {}
    for tool in tools:
        if isinstance(tool, tuple):
            custom.setdefault(tool[0], []).append(tool[1])
    standard = [tool for tool in tools if not isinstance(tool, tuple)]
    return ToolsSchema(standard_tools=standard, custom_tools=custom or None)


def _schemas(tools: list[Tool]) -> list[FunctionSchema]:
    """The schemas of those tools that have a name."""
    return _as_schema(tools).standard_tools


def _same(tools: list[Tool], others: list[Tool]) -> bool:
    return len(tools) == len(others) and all(tool in others for tool in tools)
