"""The part of the service with which an application steers the agent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import SessionLike
from pipecat_personaplex.service.control_frames import PersonaPlexHoldFrame, PersonaPlexReleaseFrame
from pipecat_personaplex.service.settings_service import SettingsService
from pipecat_personaplex.service.speech import RequestedText


class SteeringService(SettingsService):
    """A service whose agent speaks given texts and keeps silent on request.

    All methods run on the event loop of the pipeline.
    """

    def say(
        self, text: str, *, interruptible: bool = True, when: Literal["pause", "now"] = "pause"
    ) -> None:
        """Have the agent speak a text word for word, after the texts that wait already.

        The text waits until the session has started. If the session refuses it, an ``ErrorFrame``
        is pushed and the call continues.

        Args:
            text: A sentence or more, in plain words.
            interruptible: Whether the rest is cut when the caller speaks for 0.24 s, or on an
                ``InterruptionFrame``. This also cuts the interruptible texts that wait behind it.
                If no text has begun, none is cut.
            when: ``pause`` waits for a pause: at most 2.4 s for the agent's own words, and at
                most 10 s for a caller who speaks; ``now`` begins in the next frame.
        """
        self.speak(RequestedText(text, when, interruptible))

    def speak(self, text: RequestedText) -> None:
        """As ``say``; ``cut`` can drop this text alone."""
        self._call.speech.say(text)

    def cut(self, texts: Iterable[RequestedText]) -> None:
        """Cut these texts; the agent finishes the current word."""
        self._call.speech.cut(texts)

    @property
    def speaks_given_text(self) -> bool:
        """Whether the agent speaks a given text now, rather than words of its own."""
        return self._call.speech.speaking

    def hush(self) -> None:
        """Cut all interruptible texts; the agent finishes the current word."""
        self._call.speech.hush()

    def hold(self, seconds: float) -> None:
        """Keep the agent silent for this time, except for texts to speak. A new hold replaces it.

        Raises:
            ConfigError: Not a number from 0 to 30, or the engine does not support it.
            SessionFailed: No session is open.
        """
        self._open_call_session().hold(seconds)

    def release(self) -> None:
        """End a hold now.

        Raises:
            ConfigError: The engine does not support it.
            SessionFailed: No session is open.
        """
        self._open_call_session().release()

    def _open_call_session(self) -> SessionLike:
        if self._call.session is None:
            raise SessionFailed("the call has no open session")
        return self._call.session

    async def _hold_or_release(self, frame: PersonaPlexHoldFrame | PersonaPlexReleaseFrame) -> None:
        try:
            if isinstance(frame, PersonaPlexHoldFrame):
                self.hold(frame.seconds)
            else:
                self.release()
        except PersonaPlexError as error:
            await self._push_application_error(f"{frame.name} has no effect: {error}", error)
