"""Who has a slot, who waits for one, and who is in the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipecat_personaplex.engine.prompting import Prefill, Prompt
from pipecat_personaplex.engine.session import Session


@dataclass(eq=False)
class Opening:
    """A session whose prompt is not in yet."""

    session: Session
    prompt: Prompt
    prefill: Prefill | None = None


class Scheduler:
    """Slots and the sessions in and before them. Used by the model thread alone.

    Args:
        slots: How many there are.
    """

    def __init__(self, slots: int):
        self._free = list(range(slots))
        self.live: dict[int, Session] = {}
        self.opening: deque[Opening] = deque()

    def reap(self) -> list[Session]:
        """Take closed sessions out; their slots are free."""
        gone: list[Session] = []
        # Each is asked once: one that closes meanwhile is found the next time.
        for _ in range(len(self.opening)):
            opening = self.opening.popleft()
            if opening.session.closed:
                gone.append(opening.session)
            else:
                self.opening.append(opening)
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

    @property
    def busy(self) -> bool:
        """Whether there is anything to do without waiting."""
        return bool(self.opening) or any(s.has_frame() or s.closed for s in self.live.values())
