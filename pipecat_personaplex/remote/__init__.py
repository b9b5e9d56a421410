"""The client of an engine on another machine: ``personaplex serve`` or NVIDIA's Moshi server."""

from __future__ import annotations

from pipecat_personaplex.remote.engine import RemoteEngine
from pipecat_personaplex.remote.session import RemoteSession
from pipecat_personaplex.remote.stats import RemoteStats, ServerStats

__all__ = ["RemoteEngine", "RemoteSession", "RemoteStats", "ServerStats"]
