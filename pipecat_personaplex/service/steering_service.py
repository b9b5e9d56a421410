"""The part of the service with which an application steers the agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import EngineLike, SessionLike
from pipecat_personaplex.service.control_frames import PersonaPlexHoldFrame, PersonaPlexReleaseFrame
from pipecat_personaplex.service.holds import Holds
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings
from pipecat_personaplex.service.settings_service import SettingsService
from pipecat_personaplex.service.speech import RequestedText


class SteeringService(SettingsService):
    """A service whose agent speaks given texts and keeps silent on request.

    All methods run on the event loop of the pipeline.

    Args:
        engine: As for ``SettingsService``.
        settings: As for ``SettingsService``.
        clock: As for ``SettingsService``.
        **kwargs: As for ``SettingsService``.
    """

    def __init__(
        self,
        engine: EngineLike,
        settings: PersonaPlexLLMSettings | None,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ):
        super().__init__(engine, settings, clock, **kwargs)
        self._holds = Holds(clock)

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

        A hold of the delegation is another one: the agent is silent until both have ended.

        Raises:
            ConfigError: Not a number from 0 to 30, or the engine does not support it.
            SessionFailed: No session is open.
        """
        self._holds.hold(self._open_call_session(), "application", seconds)

    def release(self) -> None:
        """End the hold of ``hold`` now; one of the delegation goes on.

        Raises:
            ConfigError: The engine does not support it.
            SessionFailed: No session is open.
        """
        self._holds.release(self._open_call_session(), "application")

    def hold_for_backend(self, seconds: float) -> None:
        """As ``hold``, for the delegation."""
        self._holds.hold(self._open_call_session(), "delegation", seconds)

    def release_for_backend(self) -> None:
        """As ``release``, for the delegation."""
        self._holds.release(self._open_call_session(), "delegation")

    def _open_call_session(self) -> SessionLike:
        if self._call.session is None:
            raise SessionFailed("the call has no open session")
        return self._call.session

    def _renew_holds(self) -> None:
        """Hold a session that has become the active one, for the rest of the call's holds.

        It may have replaced the session that was held.
        """
        if self._call.session is None:
            return
        try:
            self._holds.renew(self._call.session)
        except PersonaPlexError as error:
            self.warn(f"the agent is not held in its new session: {error}")

    async def _hold_or_release(self, frame: PersonaPlexHoldFrame | PersonaPlexReleaseFrame) -> None:
        try:
            if isinstance(frame, PersonaPlexHoldFrame):
                self.hold(frame.seconds)
            else:
                self.release()
        except PersonaPlexError as error:
            await self._push_application_error(f"{frame.name} has no effect: {error}", error)
