"""What a delegation does when something happens: no clock, no tasks, no Pipecat."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from pipecat_personaplex.interface import MAX_HOLD_SECONDS
from pipecat_personaplex.service.delegation.backend_message import is_fact, says_nothing
from pipecat_personaplex.service.delegation.backend_work import BackendWork
from pipecat_personaplex.service.delegation.delegation_actions import (
    Action,
    Cut,
    Fail,
    Purpose,
    Reattach,
    Remember,
    Say,
    Send,
)
from pipecat_personaplex.service.delegation.delegation_times import DelegationTimes
from pipecat_personaplex.service.delegation.hold_reasons import HoldReasons
from pipecat_personaplex.service.delegation.speakable import speakable
from pipecat_personaplex.service.delegation.transcript_wait import TranscriptWait
from pipecat_personaplex.service.delegation.untold import Untold
from pipecat_personaplex.service.speech import estimated_seconds

PAUSE_SECONDS = 12.0
"""How long a text may wait for a pause, with a margin; see ``SessionLike.say``."""

LONG_HOLD_SECONDS = 2.0
"""Released later than this after the caller's words, the model rarely still answers them."""

_END_SECONDS = 0.1  # between the parts of a message that ends the work


@dataclass
class _Text:
    """A text that was given to the agent and has not ended."""

    text: str
    purpose: Purpose
    deadline: float
    started: bool = False


class DelegationState:
    """Decides what a delegation does when something happens.

    Each method takes the time and what happened, and returns what to do, in order. ``tick`` does
    what time alone brings; ``deadline`` is when it next has to be called.

    The agent is held while there is a reason for it. Each reason ends by itself:

    - ``caller``: the caller speaks or the transcript is not written yet; 30 s, and
      ``times.transcript`` after the end of the turn.
    - ``decision``: the backend has got the turn; the seconds of ``Hold.until_decided``.
    - ``work``: the backend is needed, calls tools or has more to say; until it is idle, fails or
      times out.
    - ``speech``: an answer is being spoken; until it ends, or well beyond its estimated duration.

    A hold begins in a gap of the agent's own words: it does not cut a sentence.

    Args:
        times: Texts and durations.

    Example::

        state = DelegationState(times)
        for action in state.turn_ended(now):
            ...
    """

    def __init__(self, times: DelegationTimes):
        self._times = times
        self._count = itertools.count(1)
        self._fillers = itertools.cycle(times.filler or ("",))
        self._reasons = HoldReasons()
        holds = times.hold.mode == "until_decided"
        self._transcript = TranscriptWait(times.transcript, holds=holds)
        self._caller_speaks = False
        self._accepted = False  # by the router, in this turn
        self._turn = 0
        self._answered = False
        self._asked_again = False  # in this turn
        self._said: set[str] = set()  # in this turn
        self._untold = Untold()
        self._texts: dict[int, _Text] = {}
        self._work = BackendWork()
        self._filler_at: float | None = None
        self._filled = False
        self._timeout_at: float | None = None
        self._end_at: float | None = None  # of the work, if the backend does not report it
        self._words_ended: float | None = None  # of the caller, without an answer so far

    @property
    def deadline(self) -> float | None:
        """When ``tick`` has something to do, at the latest; None if nothing is pending."""
        times = [self._reasons.deadline, self._filler_at, self._timeout_at, self._end_at]
        times.append(self._transcript.deadline)
        times += [text.deadline for text in self._texts.values()]
        return min((time for time in times if time is not None), default=None)

    @property
    def held(self) -> bool:
        """Whether the agent is held now."""
        return self._reasons.held

    @property
    def working(self) -> bool:
        """Whether the backend has a request that it has not finished."""
        return self._work.outstanding

    # The caller.

    def caller_started(self, now: float) -> list[Action]:
        """The caller's turn has begun."""
        self._caller_speaks, self._accepted = True, False
        self._words_ended = None
        actions = self._transcript.turn_started()
        if self._transcript.holds:
            self._reasons.set("caller", now + MAX_HOLD_SECONDS)
        return actions + self._settle(now)

    def caller_stopped(self, now: float) -> list[Action]:
        """The caller's turn, if there is one, has ended; its transcript follows."""
        if not self._caller_speaks:
            return []
        self._caller_speaks = False
        self._words_ended = now
        self._transcript.turn_stopped(now)
        if "caller" in self._reasons:
            self._reasons.set("caller", now + self._times.transcript)
        return self._settle(now)

    def accepted(self, now: float) -> list[Action]:
        """The router of the hold has found that the backend is needed for this turn."""
        words_to_come = self._caller_speaks or self._transcript.deadline is not None
        if words_to_come:
            if not self._accepted:
                self._accepted = True
                seconds = MAX_HOLD_SECONDS if self._caller_speaks else self._times.transcript
                self._reasons.set("caller", now + seconds)
        elif self._work.outstanding and not self._answered:
            self._expect_work(now)
        return self._settle(now)

    def turn_ended(self, now: float, *, accepted: bool = False) -> list[Action]:
        """The words of the caller's turn stand in the context.

        Args:
            now: The time.
            accepted: Whether the router of the hold finds that the backend is needed for it.
        """
        self._turn += 1
        self._transcript.transcribed()
        actions = self._drop_texts(list(self._texts))
        self._answered = self._filled = self._asked_again = False
        self._filler_at = self._end_at = None
        self._said.clear()
        if self._words_ended is None:
            self._words_ended = now
        if not self._caller_speaks:
            self._reasons.drop("caller")
        self._reasons.drop("speech")
        actions.append(self._send(transcript=True))
        self._timeout_at = now + self._times.timeout
        if self._work.tools or self._accepted or accepted:
            self._expect_work(now)
        elif self._times.hold.mode == "until_decided":
            self._reasons.set("decision", now + self._times.hold.seconds)
            self._reasons.drop("work")
        self._accepted = False
        return actions + self._settle(now)

    def agent_speaks(self, now: float, speaks: bool) -> list[Action]:
        """The model has begun words of its own, or has paused."""
        self._reasons.agent_speaks = speaks
        if speaks:
            self._words_ended = None
        return self._settle(now)

    # The backend.

    def sent(self, now: float, request: int, idle: bool) -> list[Action]:
        """The backend has taken a request.

        Args:
            now: The time.
            request: Number of the request.
            idle: Whether it had nothing else to do.
        """
        self._work.acknowledge(request, idle=idle)
        return self._settle(now)

    def send_failed(self, now: float, request: int, reason: str) -> list[Action]:
        """The backend did not take a request."""
        if not self._work.refuse(request):
            return []  # it has failed already
        return self._fail(now, reason)

    def tool(self, now: float, call: str, *, ended: bool) -> list[Action]:
        """A tool call of the backend has begun or ended."""
        self._work.tool(now, call, ended=ended)
        self._end_at = None
        if not ended and self._work.outstanding:
            self._expect_work(now)
        return self._settle(now)

    def spoken(self, now: float, text: str) -> list[Action]:
        """The backend wants the caller to hear this."""
        origin = self._work.speak(now)
        if origin == "torn":
            self._untold.torn(text)
            return self._settle(now)
        if origin == "old run":
            self._untold.stale(text)
            return [self._send(transcript=False), *self._settle(now)]
        self._end_soon(now)
        found, left_out = ([], "") if says_nothing(text) else speakable(text)
        sentences = [each for each in found if each.lower() not in self._said]
        if left_out:
            self._untold.too_long(left_out)
        actions: list[Action] = []
        if sentences:
            texts = self._texts.items()
            actions += self._drop_texts(
                [key for key, each in texts if each.purpose == "filler" and not each.started]
            )
            self._said |= {each.lower() for each in sentences}
            self._answered, self._words_ended, self._filler_at = True, None, None
            actions += self._say(now, sentences, "answer")
            if self._work.outstanding and self._times.hold.mode != "never":
                self._reasons.set("work", self._timeout_at or now)
            self._reasons.drop("decision")
        return actions + self._settle(now)

    def noted(self, now: float, text: str) -> list[Action]:
        """The backend has written something that the caller need not hear."""
        if self._work.note(now) == "torn":
            return self._settle(now)
        self._end_soon(now)
        if not is_fact(text):
            return self._settle(now)
        return [Remember(" ".join(text.split())), *self._settle(now)]

    def idle(
        self, now: float, *, works_on: bool | None = False, filtered: bool = False
    ) -> list[Action]:
        """The backend reports that it has nothing left to do.

        Args:
            now: The time.
            works_on: Whether it goes on with a turn that it held, and reports the end of that; None
                if that is unknown.
            filtered: Whether messages may have been dropped on purpose before they were sent.
        """
        if not self._work.idle(works_on=works_on):
            return self._settle(now)
        if not (self._work.heard or self._answered or filtered):
            return self._ask_again(now)
        actions: list[Action] = []
        if self._is_left_unanswered(now) and self._times.unanswered:
            actions += self._say(now, [self._times.unanswered], "sorry")
        self._rest()
        return actions + self._settle(now)

    def failed(self, now: float, reason: str) -> list[Action]:
        """A run of the backend's model has failed; a turn that it held is still answered."""
        if self._work.fail(now):
            return [Fail(reason), *self._settle(now)]
        return self._fail(now, reason)

    def detached(self, now: float, reason: str) -> list[Action]:
        """The backend is gone, and its work with it."""
        actions = self._fail(now, reason)
        self._work = BackendWork()
        return actions

    # The agent's texts.

    def speech_started(self, now: float, key: int) -> list[Action]:
        """A text has begun."""
        if key in self._texts:
            self._texts[key].started = True
        return self._settle(now)

    def speech_ended(self, now: float, key: int, spoken: Sequence[str], said: bool) -> list[Action]:
        """A text was spoken, or cut after these words."""
        text = self._texts.pop(key, None)
        if text is not None and text.purpose == "answer" and not said:
            self._untold.cut(text.text, spoken)
        if not any(each.purpose == "answer" for each in self._texts.values()):
            self._reasons.drop("speech")
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Do what is due by now."""
        overdue = [key for key, text in self._texts.items() if now >= text.deadline]
        actions = self._drop_texts(overdue)
        for key in overdue:
            self._texts.pop(key, None)
        actions += self._transcript.tick(now)
        if self._timeout_at is not None and now >= self._timeout_at:
            self._timeout_at = None
            if self._work.outstanding:
                reason = f"the backend did not finish within {self._times.timeout:g} s"
                actions += [*self._fail(now, reason), Reattach()]
                self._work = BackendWork()
        if self._end_at is not None and now >= self._end_at:
            self._end_at = None
            actions += self.idle(now)
        if self._filler_at is not None and now >= self._filler_at:
            self._filler_at = None
            text = next(self._fillers)
            if text and not self._caller_speaks and not self._texts:
                self._filled = True
                actions += self._say(now, [text], "filler")
        return actions + self._settle(now)

    # What the methods above have in common.

    def _send(self, *, transcript: bool) -> Send:
        request = next(self._count)
        self._work.send(request, turn=transcript)
        return Send(request, self._turn, self._untold.take(), transcript)

    def _say(self, now: float, texts: Sequence[str], purpose: Purpose) -> list[Action]:
        seconds = PAUSE_SECONDS + 2 * estimated_seconds(
            [*texts, *(text.text for text in self._texts.values())]
        )
        actions: list[Action] = []
        for text in texts:
            key = next(self._count)
            self._texts[key] = _Text(text, purpose, now + seconds)
            actions.append(Say(key, text, purpose))
        if purpose == "answer" and self._times.hold.mode != "never":
            self._reasons.set("speech", now + seconds)
        return actions

    def _drop_texts(self, keys: Sequence[int]) -> list[Action]:
        """Cut texts; the end of one that has begun is still to come."""
        for key in keys:
            text = self._texts[key]
            if not text.started:
                del self._texts[key]
                if text.purpose == "answer":
                    self._untold.cut(text.text)
        return [Cut(tuple(keys))] if keys else []

    def _is_left_unanswered(self, now: float) -> bool:
        """Whether neither the backend nor, any more, the model answers the caller's turn."""
        if self._answered or self._caller_speaks or self._words_ended is None:
            return False
        hold = self._times.hold
        late = hold.mode == "until_decided" and hold.seconds > LONG_HOLD_SECONDS
        waited_long = self._filled or now - self._words_ended > LONG_HOLD_SECONDS
        return waited_long and (self.held or late)

    def _expect_work(self, now: float) -> None:
        self._reasons.drop("decision")
        if self._times.hold.mode != "never":
            self._reasons.set("work", self._timeout_at or now)
        self._expect_filler(now)

    def _expect_filler(self, now: float) -> None:
        if not self._filled and not self._answered and self._filler_at is None:
            self._filler_at = now + self._times.filler_after

    def _end_soon(self, now: float) -> None:
        """Take the newest message for the last one if the backend does not report its end."""
        if self._work.ends_unreported:
            self._end_at = now + _END_SECONDS

    def _ask_again(self, now: float) -> list[Action]:
        """Ask once more for an answer that was lost, such as a tool call with broken arguments."""
        if self._asked_again:
            return self._fail(now, "the backend has twice sent neither a message nor a tool call")
        self._asked_again = True
        self._untold.silent()
        return [self._send(transcript=False), *self._settle(now)]

    def _rest(self) -> None:
        """Expect nothing of the backend any more."""
        self._work.finish()
        self._filler_at = self._timeout_at = None
        self._reasons.drop("decision", "work")

    def _fail(self, now: float, reason: str) -> list[Action]:
        actions: list[Action] = [Fail(reason)]
        if self._work.outstanding and not self._answered and self._times.sorry:
            actions += self._say(now, [self._times.sorry], "sorry")
            self._answered = True
        self._rest()
        return actions + self._settle(now)

    def _settle(self, now: float) -> list[Action]:
        return self._reasons.settle(now)
