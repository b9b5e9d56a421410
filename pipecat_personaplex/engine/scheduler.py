"""Who is admitted, who is in the next step, and how much of a prompt fits between two steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipecat_personaplex.config import FRAME_SECONDS
from pipecat_personaplex.engine.prompting import Prefill, Prompt
from pipecat_personaplex.engine.session import Session

# Share of a frame that a joining caller's prompt may take from running calls between two steps.
_PREFILL_SHARE = 0.25
_MIN_CHUNK = 8


@dataclass
class Opening:
    """A session whose prompt is not in yet."""

    session: Session
    prompt: Prompt
    prefill: Prefill | None = None


class Scheduler:
    """Slots and the sessions in and before them. Used by the model thread alone.

    Args:
        slots: How many there are.
        prefill_chunk: Longest run of prompt frames computed at once.
    """

    def __init__(self, slots: int, prefill_chunk: int):
        self._free = list(range(slots))
        self._prefill_chunk = prefill_chunk
        self._seconds_per_frame = 0.0
        self.live: dict[int, Session] = {}
        self.opening: deque[Opening] = deque()

    def reap(self) -> list[Session]:
        """Take closed sessions out; their slots are free."""
        gone = [opening.session for opening in self.opening if opening.session.closed]
        if gone:
            self.opening = deque(o for o in self.opening if not o.session.closed)
        for slot in [slot for slot, session in self.live.items() if session.closed]:
            gone.append(self.live.pop(slot))
            self._free.append(slot)
        return gone

    def join(self, session: Session) -> int:
        """Give a session the lowest free slot, so that batches stay runs of neighbours."""
        slot = min(self._free)
        self._free.remove(slot)
        self.live[slot] = session
        return slot

    def ready(self) -> dict[int, Session]:
        """Every live session that has a full frame, in slot order: they step together."""
        return {slot: self.live[slot] for slot in sorted(self.live) if self.live[slot].has_frame()}

    def chunk(self) -> int:
        """How many prompt frames to compute before looking at the calls again."""
        if not self.live:
            return self._prefill_chunk
        if not self._seconds_per_frame:
            return _MIN_CHUNK
        fits = int(_PREFILL_SHARE * FRAME_SECONDS / self._seconds_per_frame)
        return max(_MIN_CHUNK, min(fits, self._prefill_chunk))

    def took(self, frames: int, seconds: float) -> None:
        """Learn what prompt frames cost here."""
        self._seconds_per_frame = seconds / frames

    @property
    def busy(self) -> bool:
        """Whether there is anything to do without waiting."""
        return bool(self.opening) or any(s.has_frame() or s.closed for s in self.live.values())
