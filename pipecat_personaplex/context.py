"""What of a conversation that Pipecat keeps matters to a model that has heard it."""

from __future__ import annotations

from pipecat.processors.aggregators.llm_context import LLMContext, is_given


def role_in(context: LLMContext) -> str:
    """The text of the first message, if that is a system message."""
    messages = context.get_messages()
    first = messages[0] if messages else None
    if not isinstance(first, dict) or first.get("role") not in ("system", "developer"):
        return ""
    content = first.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(part.get("text", "") for part in parts if isinstance(part, dict))


def brings_tools(context: LLMContext) -> bool:
    """Whether it expects a model that calls functions."""
    return is_given(context.tools)
