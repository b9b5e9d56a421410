"""What the service reads from an ``LLMContext``: the role, facts, and whether it has tools."""

from __future__ import annotations

from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    is_given,
    standard_message_text,
)

_INSTRUCTING = ("system", "developer")


def role_message_of(context: LLMContext, *, developer: bool = True) -> LLMContextMessage | None:
    """The first message if it is a system message.

    Args:
        context: A context.
        developer: Whether a developer message counts as well.
    """
    roles = _INSTRUCTING if developer else _INSTRUCTING[:1]
    first = next(iter(context.get_messages()), None)
    return first if isinstance(first, dict) and first.get("role") in roles else None


def system_prompt_of(context: LLMContext) -> str:
    """The text of the first message if it is a system or developer message, else empty."""
    message = role_message_of(context)
    return "" if message is None else standard_message_text(message)


def facts_of(context: LLMContext, role_message: object) -> list[str]:
    """The texts of all system and developer messages but one, oldest first."""
    return [
        text
        for message in context.get_messages()
        if isinstance(message, dict)
        and message != role_message
        and message.get("role") in _INSTRUCTING
        and (text := standard_message_text(message).strip())
    ]


def has_tools(context: LLMContext) -> bool:
    """Whether the context offers functions to the model."""
    return is_given(context.tools)
