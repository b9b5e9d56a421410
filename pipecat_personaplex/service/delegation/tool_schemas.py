"""Pipecat's schemas of tools, which version 1.14 has moved."""

from __future__ import annotations

try:
    from pipecat.adapters.llm.schemas.direct_function import DirectFunction, DirectFunctionWrapper
    from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
    from pipecat.adapters.llm.schemas.tools_schema import AdapterType, ToolsSchema
except ModuleNotFoundError:  # 1.13
    from pipecat.adapters.schemas.direct_function import DirectFunction, DirectFunctionWrapper
    from pipecat.adapters.schemas.function_schema import FunctionSchema
    from pipecat.adapters.schemas.tools_schema import AdapterType, ToolsSchema

__all__ = [
    "AdapterType",
    "DirectFunction",
    "DirectFunctionWrapper",
    "FunctionSchema",
    "ToolsSchema",
]
