"""The error that a tool raises for its LLM; apart from ``tool_calls``, which needs Pipecat."""


class ToolProblem(Exception):
    """What an LLM can correct or pass on to the caller; the message is for the LLM to read."""
