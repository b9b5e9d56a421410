"""What the service reports of its call, for a delegation that acts on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pipecat.frames.frames import Frame

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.interface import SessionFrame, Speech
from pipecat_personaplex.service.delegation.delegation_state import DelegationState


class CallFollower:
    """Takes what the service reports of its call, and does nothing: a call without a delegation.

    ``Delegator`` is the one that acts on it.

    Attributes:
        state: What the delegation does now; None without a delegation.
    """

    state: DelegationState | None = None

    async def open(self) -> None:
        """The service has been set up in its pipeline."""

    async def ground(self, open_session: Callable[[], Awaitable[None]]) -> None:
        """The pipeline has started: open the session.

        Args:
            open_session: Opens it.
        """
        await open_session()

    async def close(self) -> None:
        """The call is over; does nothing the second time."""

    def register_function(self, name: str | None, handler: Any, options: dict[str, Any]) -> None:
        """The application has registered a function; see ``LLMService.register_function``."""

    def process(self, frame: Frame) -> None:
        """The service processes a frame that moves downstream."""

    def hear_speech(self, pcm: Pcm) -> None:
        """The caller speaks.

        Args:
            pcm: float32 [n] mono 24 kHz.
        """

    def push_output(self, frame: SessionFrame) -> None:
        """The model has computed a frame."""

    def speech_started(self, speech: Speech) -> None:
        """The agent has begun a text."""

    def speech_ended(self, speech: Speech) -> None:
        """A text was spoken, or cut."""

    def speech_rejected(self, text: str) -> None:
        """The session refused a text."""
