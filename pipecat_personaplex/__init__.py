"""NVIDIA PersonaPlex for Pipecat: a batched engine, a client for remote engines, and the service.

Importing this package imports neither torch nor Pipecat. Each name below is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
    from pipecat_personaplex.engine.engine import Engine
    from pipecat_personaplex.interface import SessionFrame
    from pipecat_personaplex.remote import RemoteEngine
    from pipecat_personaplex.service.delegation.hold import Hold
    from pipecat_personaplex.service.llm import PersonaPlexLLMService
    from pipecat_personaplex.service.playout import PlayoutMeter
    from pipecat_personaplex.session import Session

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "EngineConfig",
    "Hold",
    "Persona",
    "PersonaPlexLLMService",
    "PlayoutMeter",
    "RemoteEngine",
    "SamplingParams",
    "Session",
    "SessionFrame",
]

_MODULES = {
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "Hold": "service.delegation.hold",
    "Persona": "config",
    "PersonaPlexLLMService": "service.llm",
    "PlayoutMeter": "service.playout",
    "RemoteEngine": "remote",
    "SamplingParams": "config",
    "Session": "session",
    "SessionFrame": "interface",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
