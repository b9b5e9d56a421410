"""NVIDIA PersonaPlex for Pipecat: the engine, the service, the bots.

Importing this package loads neither torch nor Pipecat; each name below loads what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
    from pipecat_personaplex.engine.engine import Engine
    from pipecat_personaplex.engine.session import Session, SessionFrame
    from pipecat_personaplex.playout import PlayoutMeter
    from pipecat_personaplex.remote import RemoteEngine
    from pipecat_personaplex.service import PersonaPlexLLMService

__version__ = "0.1.0"
__all__ = [
    "Engine",
    "EngineConfig",
    "Persona",
    "PersonaPlexLLMService",
    "PlayoutMeter",
    "RemoteEngine",
    "SamplingParams",
    "Session",
    "SessionFrame",
]

_HOMES = {
    "Engine": "engine.engine",
    "EngineConfig": "config",
    "Persona": "config",
    "PersonaPlexLLMService": "service",
    "PlayoutMeter": "playout",
    "RemoteEngine": "remote",
    "SamplingParams": "config",
    "Session": "engine.session",
    "SessionFrame": "engine.session",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
