"""Runs many conversations with recorded users at once, as fast as the machine computes them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.engine.converse import Conversation, conversation_of, frames_of
from pipecat_personaplex.errors import EngineFull, PersonaPlexError, SessionFailed, UserError
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.session import Session

# Frames of a call in flight, at most: so many that every step has a frame of every call, also while
# the results of a finished call are written.
_FRAMES_AHEAD = 16
_Event = Literal["frames"] | PersonaPlexError | None
"""What wakes the calling thread: computed frames, or the end of the session."""
Label = TypeVar("Label")


@dataclass(frozen=True)
class ConversationJob(Generic[Label]):
    """One call for ``Engine.converse_many``.

    Attributes:
        label: Whatever identifies the call to its owner.
        persona: Voice and role.
        pcm: The user's audio, float32 mono 24 kHz.
        sampling: How tokens are sampled.
    """

    label: Label
    persona: Persona
    pcm: Pcm
    sampling: SamplingParams = field(default_factory=SamplingParams)


@dataclass(frozen=True)
class FinishedJob(Generic[Label]):
    """The end of a ``ConversationJob``.

    Attributes:
        job: The job.
        conversation: The conversation; None if it failed.
        error: Why it failed; None if it did not.
    """

    job: ConversationJob[Label]
    conversation: Conversation | None
    error: PersonaPlexError | None = None


class _Engine(Protocol):
    """What this module needs of an ``Engine``."""

    @property
    def max_sessions(self) -> int:
        """Slots."""
        ...

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_end: Callable[[PersonaPlexError | None], object],
    ) -> Session:
        """Open a session that reports through these callbacks."""
        ...


class _Call(Generic[Label]):
    """A call in progress: at most ``ahead`` of its frames are in the engine.

    The calling thread wakes when half of them are computed, not for each: every wake-up takes the
    interpreter from the model thread.
    """

    def __init__(self, job: ConversationJob[Label], ahead: int):
        self.job = job
        self.input = frames_of(job.pcm)
        self.frames: list[SessionFrame] = []  # the model thread appends
        self.session: Session | None = None
        self.reported = 0
        self._ahead = ahead
        self._wake_every = max(1, ahead // 2)
        self._pushed = 0

    @property
    def complete(self) -> bool:
        return len(self.frames) == len(self.input)

    def receive(self, frame: SessionFrame, wake: Callable[[_Event], None]) -> None:
        """Add a frame; called on the model thread."""
        self.frames.append(frame)
        if self.complete or len(self.frames) % self._wake_every == 0:
            wake("frames")

    def feed(self) -> None:
        """Push frames until ``ahead`` are in flight; none if the session has failed."""
        assert self.session is not None
        until = min(len(self.input), len(self.frames) + self._ahead)
        try:
            for frame in self.input[self._pushed : until]:
                self.session.push(frame)
        except SessionFailed:
            return  # its end, which says why, is among the events
        self._pushed = max(self._pushed, until)

    def finish(self) -> FinishedJob[Label]:
        if self.session is not None:
            self.session.close()
        return FinishedJob(self.job, conversation_of(self.frames, len(self.job.pcm)))


def converse_many(
    engine: _Engine,
    jobs: Iterable[ConversationJob[Label]],
    max_queued_frames: int,
    on_frames: Callable[[int], object] | None = None,
) -> Iterator[FinishedJob[Label]]:
    """Run many conversations at once, and yield each as it ends.

    Jobs are read as slots become free, so memory holds at most as many calls as the engine has
    slots. A job that fails is yielded with its error, and the others go on. The sessions are
    closed when the iteration ends, also by an exception in its consumer.

    Args:
        engine: A started engine.
        jobs: The calls.
        max_queued_frames: Input frames that may wait in a session; never exceeded.
        on_frames: Called in the calling thread with the number of frames that were just computed.

    Raises:
        EngineError: The engine stops or fails, or others take all of its slots.
    """
    waiting = iter(jobs)
    postponed: ConversationJob[Label] | None = None
    events: queue.SimpleQueue[tuple[_Call[Label], _Event]] = queue.SimpleQueue()
    calls: set[_Call[Label]] = set()
    ahead = min(_FRAMES_AHEAD, max_queued_frames)
    try:
        while True:
            while len(calls) < engine.max_sessions:
                job = postponed or next(waiting, None)
                postponed = None
                if job is None:
                    break
                try:
                    call = _Call(job, ahead)
                    if call.complete:  # an empty recording
                        yield call.finish()
                        continue
                    wake = partial(_put, events, call)
                    call.session = engine.open_session(
                        job.persona,
                        job.sampling,
                        on_frame=partial(call.receive, wake=wake),
                        on_end=wake,
                    )
                except EngineFull:  # other users of the engine have the remaining slots
                    if not calls:
                        raise
                    postponed = job
                    break
                except UserError as rejected:  # of this job alone
                    yield FinishedJob(job, None, rejected)
                    continue
                calls.add(call)
                call.feed()
            if not calls:
                return
            call, event = events.get()
            if call not in calls:
                continue  # the end of a call that has finished
            if isinstance(event, str):
                computed = len(call.frames)
                if on_frames is not None:
                    on_frames(computed - call.reported)
                    call.reported = computed
                if computed < len(call.input):
                    call.feed()
                    continue
                calls.remove(call)
                yield call.finish()
            else:
                calls.remove(call)
                error = event or SessionFailed("the session was closed")
                if not isinstance(error, (UserError, SessionFailed)):
                    raise error  # the engine has stopped or failed: no call can go on
                yield FinishedJob(call.job, None, error)
    finally:
        for call in calls:
            if call.session is not None:
                call.session.close()


def _put(
    events: queue.SimpleQueue[tuple[_Call[Label], _Event]], call: _Call[Label], event: _Event
) -> None:
    events.put((call, event))
