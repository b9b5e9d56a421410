"""Tools of the service's context beside the backend's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pipecat.processors.aggregators.llm_context import LLMContext, is_given

from pipecat_personaplex.service.delegation.backend_tools import BackendTools
from pipecat_personaplex.service.delegation.tool_schemas import (
    AdapterType,
    FunctionSchema,
    ToolsSchema,
)

SEARCH = {"type": "web_search"}
FILES = {"type": "file_search"}
A, B, C, OTHER_A = (FunctionSchema(name, name, {}, []) for name in ("a", "b", "c", "a"))


class Backend:
    """A backend and the service's context, whose tools are passed on."""

    def __init__(self, *own: FunctionSchema, custom: list[dict[str, Any]] | None = None):
        self.context = LLMContext(tools=_tools(own, custom))
        self.given = LLMContext()
        self.warnings: list[str] = []
        worker: Any = SimpleNamespace(context=self.context)
        self.tools = BackendTools(worker, self.warnings.append)

    def gets(self, *given: FunctionSchema, custom: list[dict[str, Any]] | None = None) -> None:
        """The service's context has these tools, and no others."""
        self.given.set_tools(_tools(given, custom))
        self.tools.pass_on(self.given)

    @property
    def standard(self) -> list[FunctionSchema]:
        tools = self.context.tools
        return tools.standard_tools if is_given(tools) else []

    @property
    def custom(self) -> dict[AdapterType, list[dict[str, Any]]] | None:
        tools = self.context.tools
        return tools.custom_tools if is_given(tools) else None


def _tools(standard: Any, custom: list[dict[str, Any]] | None) -> ToolsSchema:
    return ToolsSchema(list(standard), {AdapterType.OPENAI: custom} if custom else None)


def test_the_backend_keeps_its_custom_tools() -> None:
    backend = Backend(A, custom=[SEARCH])
    backend.gets(B)
    assert backend.standard == [A, B] and backend.custom == {AdapterType.OPENAI: [SEARCH]}


def test_custom_tools_of_the_service_are_passed_on_and_withdrawn() -> None:
    backend = Backend(A, custom=[SEARCH])
    backend.gets(B, custom=[FILES, SEARCH])
    assert backend.custom == {AdapterType.OPENAI: [SEARCH, FILES]}
    backend.gets()
    assert backend.standard == [A] and backend.custom == {AdapterType.OPENAI: [SEARCH]}


def test_a_tool_that_the_application_adds_to_the_backend_stays() -> None:
    backend = Backend(A)
    backend.gets(B)
    backend.context.set_tools([A, C])
    backend.gets(B)
    assert backend.standard == [A, C, B]
    assert backend.tools.texts == ["a a", "c c", "b b"]
    backend.gets()
    assert backend.standard == [A, C]


def test_of_two_tools_with_one_name_the_backends_counts() -> None:
    backend = Backend(A)
    backend.gets(OTHER_A, B)
    assert backend.standard == [A, B]
    backend.gets(A)
    backend.gets()
    assert backend.standard == [A]


def test_tools_that_have_not_changed_are_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(A, custom=[SEARCH])
    backend.gets(B, custom=[FILES])
    monkeypatch.setattr(backend.context, "set_tools", None)
    backend.gets(B, custom=[FILES])


def test_custom_tools_for_a_backend_elsewhere_are_warned_of() -> None:
    warnings: list[str] = []
    tools = BackendTools(None, warnings.append)
    tools.pass_on(LLMContext(tools=_tools([], [SEARCH])))
    assert len(warnings) == 1 and tools.texts == []
