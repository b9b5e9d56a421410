"""How long the agent takes to respond, where a voice activity detector is in the pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipecat_personaplex.audio import Pcm, is_audible

# A shorter pause of the agent does not end its turn.
_PAUSE_SECONDS = 0.3
# The agent speaks on its own account if it begins later than this.
_LONGEST_SECONDS = 5.0


class ResponseTime:
    """From the end of the caller's speech to the agent's next onset.

    A detector reports an end some time after it; by then the agent may have begun. An agent that
    speaks already while the caller stops does not respond.

    Args:
        clock: Returns monotonic seconds.

    Example::

        response = ResponseTime()
        for pcm in agent_audio:  # float32 [1920] each
            if (seconds := response.agent(pcm)) is not None:
                print(seconds)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._stopped: float | None = None  # an end that has no response yet
        self._onset = -_LONGEST_SECONDS
        self._audible = -_LONGEST_SECONDS  # the last audible frame

    def caller_started(self) -> None:
        """Forget the last end: the caller goes on."""
        self._stopped = None

    def caller_stopped(self, waited: float) -> float | None:
        """Take the end of the caller's speech.

        Args:
            waited: Seconds of silence that the detector has heard before it reported the end.

        Returns:
            The response time in seconds if the agent has begun since the end, else None.
        """
        stopped = self._clock() - waited
        if self._onset >= stopped:
            return self._onset - stopped
        speaking = self._audible >= stopped - _PAUSE_SECONDS
        self._stopped = None if speaking else stopped
        return None

    def agent(self, pcm: Pcm) -> float | None:
        """Add a frame of the agent's audio, float32 [1920].

        Returns:
            The response time in seconds if the agent begins to respond, else None.
        """
        if not is_audible(pcm):
            return None
        now = self._clock()
        begins, self._audible = now - self._audible > _PAUSE_SECONDS, now
        if not begins:
            return None
        self._onset = now
        stopped, self._stopped = self._stopped, None
        if stopped is None or now - stopped > _LONGEST_SECONDS:
            return None
        return now - stopped
