"""What the service reads from an ``LLMContext``: the role, and whether tools are expected."""

from __future__ import annotations

from pipecat.processors.aggregators.llm_context import LLMContext, is_given


def system_prompt_of(context: LLMContext) -> str:
    """The text of the first message if it is a system or developer message, else empty."""
    messages = context.get_messages()
    first = messages[0] if messages else None
    if not isinstance(first, dict) or first.get("role") not in ("system", "developer"):
        return ""
    content = first.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(part.get("text", "") for part in parts if isinstance(part, dict))


def has_tools(context: LLMContext) -> bool:
    """Whether the context offers functions to the model."""
    return is_given(context.tools)
