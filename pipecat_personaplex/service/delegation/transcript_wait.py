"""Waits for the transcript of each turn of the caller, and notices that none comes any more."""

from __future__ import annotations

from pipecat_personaplex.service.delegation.delegation_actions import Action, Warn

_MAX_MISSING = 2  # turns in a row
_NO_TRANSCRIPTS = (
    f"{_MAX_MISSING} turns of the caller in a row have no transcript: the next ones do not hold "
    "the agent, until one has a transcript; if the caller spoke, the speech-to-text service has "
    "failed or is slower than transcript_secs"
)


class TranscriptWait:
    """Waits for the transcript of each turn of the caller, and notices that none comes any more.

    Without transcripts, holds would only delay every answer. So the first turn of a call without a
    transcript, and later two such turns in a row, end the holds until a turn has a transcript.

    Args:
        seconds: How long the transcript of a turn may take.
        holds: Whether turns hold the agent from their start, while there are transcripts.

    Attributes:
        deadline: When the transcript of the last turn is overdue; None if none is awaited.
    """

    def __init__(self, seconds: float, *, holds: bool):
        self.deadline: float | None = None
        self._seconds = seconds
        self._holds = holds
        self._missing = _MAX_MISSING - 1  # turns in a row; one is enough before any transcript
        self._had_any = False
        self._warned = False

    @property
    def holds(self) -> bool:
        """Whether a turn that begins now holds the agent."""
        return self._holds and self._missing < _MAX_MISSING

    def turn_started(self) -> list[Action]:
        """The caller's turn has begun; the one before may still lack its transcript."""
        return self._miss() if self.deadline is not None else []

    def turn_stopped(self, now: float) -> None:
        """The caller's turn has ended; its transcript follows."""
        self.deadline = now + self._seconds

    def transcribed(self) -> None:
        """The transcript of a turn has come."""
        self.deadline, self._missing, self._had_any = None, 0, True

    def tick(self, now: float) -> list[Action]:
        """Give up a transcript that is overdue by now."""
        return self._miss() if self.deadline is not None and now >= self.deadline else []

    def _miss(self) -> list[Action]:
        held, self.deadline = self.holds, None
        self._missing += 1
        # A call that never had a transcript is warned of by ``Delegator.hear_speech``.
        if not held or self.holds or not self._had_any or self._warned:
            return []
        self._warned = True
        return [Warn(_NO_TRANSCRIPTS)]
