"""The settings of a ``Delegation`` that decide when something happens."""

from __future__ import annotations

from dataclasses import dataclass

from pipecat_personaplex.service.delegation.hold import Hold

TRANSCRIPT_SECONDS = 2.0
"""How long the agent stays silent for the transcript unless told otherwise."""


@dataclass(frozen=True)
class DelegationTimes:
    """The settings of a ``Delegation`` that decide when something happens.

    Attributes:
        hold: When the agent keeps silent.
        filler: Texts to speak while the backend works, in turn.
        filler_after: Seconds of its work before that.
        timeout: Seconds for a request.
        sorry: Text for a request that failed; empty for none.
        unanswered: Text for a caller who gets no answer after a long hold; empty for none.
        transcript: Seconds of silence for the transcript after the caller's turn has ended.
    """

    hold: Hold
    filler: tuple[str, ...]
    filler_after: float
    timeout: float
    sorry: str
    unanswered: str
    transcript: float = TRANSCRIPT_SECONDS
