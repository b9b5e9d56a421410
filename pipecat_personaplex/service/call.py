"""One caller's conversation with an engine; it outlives the sessions that serve it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from pipecat_personaplex import async_session
from pipecat_personaplex.async_session import Ready, SessionEvent
from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import EngineFull, PersonaPlexError
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, EngineLike, SessionFrame
from pipecat_personaplex.service.call_session import CallSession, SessionState
from pipecat_personaplex.service.forced_speech import max_frames
from pipecat_personaplex.service.pacing import MAX_WAITING_FRAMES, InputPacer, PacingStats


@dataclass(frozen=True)
class SessionStarted:
    """A session has become the active one: it receives the caller's audio from now on."""

    persona: Persona
    session_id: str


@dataclass(frozen=True)
class SessionEnded:
    """The active or draining session has ended, or the first session failed before it was ready.

    Attributes:
        persona: The session's persona.
        session_id: The session's public id.
        error: None if the session was closed on purpose.
    """

    persona: Persona
    session_id: str
    error: PersonaPlexError | None


@dataclass(frozen=True)
class PersonaRejected:
    """The session of a new persona ended before it was ready; the active session continues."""

    persona: Persona
    session_id: str
    error: PersonaPlexError | None


@dataclass(frozen=True)
class SpeechRejected:
    """The session refused to speak a text."""

    text: str
    session_id: str
    error: PersonaPlexError


_POLL_SECONDS = 0.02

Event = SessionFrame | SessionStarted | SessionEnded | PersonaRejected | SpeechRejected


class Call:
    """Feeds one session after another in real time and merges their output into one stream.

    All methods run on the event loop that called ``open``. Sessions report from another thread;
    ``async_session.open_session`` moves these reports to the event loop. Each report carries its
    session, so reports of a session that the call has closed are ignored.

    Args:
        engine: Opens the sessions.
        clock: Returns monotonic seconds.

    Example::

        call = Call(engine)
        call.open(Persona("NATF2"), SamplingParams())
        async for event in call.events():       # meanwhile: call.push_audio(pcm), call.tick()
            ...
    """

    def __init__(self, engine: EngineLike, clock: Callable[[], float] = time.monotonic):
        self._engine = engine
        self._clock = clock
        self._pacer = InputPacer()
        self._sessions: list[CallSession] = []  # at most one in each state
        # Short: each session has a bounded number of frames in flight. None wakes events() at the
        # end of the call.
        self._inbox: asyncio.Queue[tuple[CallSession, SessionEvent | SpeechRejected] | None] = (
            asyncio.Queue()
        )
        self._unspoken: list[str] = []  # forced texts that wait for an active session
        self._closed = False

    @property
    def persona(self) -> Persona | None:
        """The persona of the current session: active, or the first one while it is pending."""
        return self._current.persona if self._current else None

    @property
    def sampling(self) -> SamplingParams | None:
        """How the current session samples tokens; None if there is no session."""
        return self._current.sampling if self._current else None

    @property
    def session_id(self) -> str | None:
        """The public id of the current session; None if there is no session."""
        return self._current.session.id if self._current else None

    @property
    def speech_seconds(self) -> float:
        """Upper bound of the time until all forced texts are spoken and their turn has ended.

        0 if no text is left, or no session can speak it.
        """
        if self._closed or self._current is None:
            return 0.0
        frames = self._current.speech.frames_left + sum(map(max_frames, self._unspoken))
        return min(frames, MAX_SPEECH_FRAMES) * FRAME_SECONDS

    @property
    def backlog_frames(self) -> int:
        """Input frames without an output frame yet: those that wait here and those in flight."""
        return self._pacer.waiting + (self._current.in_flight_frames if self._current else 0)

    @property
    def pacing(self) -> PacingStats:
        """Silence inserted into the caller's audio, and audio left out of it, so far."""
        return self._pacer.stats

    def open(self, persona: Persona, sampling: SamplingParams) -> None:
        """Open a session that becomes the active one as soon as it is ready.

        Until then the active session continues, with the new sampling if it supports the change.
        A session that is still pending is replaced; on a full engine it gives up its slot.

        Raises:
            PersonaPlexError: As ``Engine.open_session``; the active session is unchanged.
        """
        if self._closed:
            return
        pending = self._pending
        try:
            opened = self._open_session(persona, sampling)
        except EngineFull:
            if pending is None:
                raise
            pending.session.close()
            opened = self._open_session(persona, sampling)
        if pending is not None:
            self._close(pending)
        self._sessions.append(opened)
        if self._active is not None:
            with suppress(PersonaPlexError):
                self._active.update(sampling)

    def update(self, sampling: SamplingParams) -> None:
        """Change how tokens are sampled, from the next frame on.

        Raises:
            PersonaPlexError: As ``SessionLike.update``; then nothing has changed.
        """
        current, pending = self._current, self._pending
        if current is not None:
            current.update(sampling)
        if pending is not None and pending is not current:
            # If the pending session has ended, its Ended event reports why.
            with suppress(PersonaPlexError):
                pending.update(sampling)

    def say(self, text: str) -> None:
        """Have the agent speak a text as soon as a session is active."""
        self._unspoken.append(text)
        self._say_unspoken()

    def push_audio(self, pcm: Pcm) -> None:
        """Add the caller's audio: float32 mono 24 kHz, any length."""
        self._pacer.push(pcm, self._clock())
        self._push_frames()

    def tick(self) -> None:
        """Insert silence if the caller's audio is late; call this about every 20 ms."""
        self._pacer.tick(self._clock())
        self._push_frames()

    async def wait_for_speech(self, grace_seconds: float) -> bool:
        """Wait until all forced texts are spoken and their turn has ended; ``tick`` must go on.

        Args:
            grace_seconds: How much longer than ``speech_seconds`` to wait, for a session that is
                still pending or has stalled.

        Returns:
            False if the time is over before.
        """
        # By the real clock: the clock that paces the input may have stopped.
        deadline = time.monotonic() + self.speech_seconds + grace_seconds
        while self.speech_seconds:
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    def close(self) -> None:
        """Close every session and end ``events``; does nothing if called before."""
        if self._closed:
            return
        self._closed = True
        for session in self._sessions:
            session.session.close()
        self._inbox.put_nowait(None)

    async def events(self) -> AsyncIterator[Event]:
        """Yield all events in order, until the call is closed. One consumer only."""
        while True:
            report = await self._inbox.get()
            if self._closed or report is None:
                break
            for event in self._handle(*report):
                yield event
        for session in (self._draining, self._active):
            if session is not None:
                yield SessionEnded(session.persona, session.session.id, None)
        self._sessions.clear()

    def _in_state(self, state: SessionState) -> CallSession | None:
        for session in self._sessions:
            if session.state is state:
                return session
        return None

    @property
    def _pending(self) -> CallSession | None:
        return self._in_state(SessionState.PENDING)

    @property
    def _active(self) -> CallSession | None:
        return self._in_state(SessionState.ACTIVE)

    @property
    def _draining(self) -> CallSession | None:
        return self._in_state(SessionState.DRAINING)

    @property
    def _current(self) -> CallSession | None:
        """The active session; before the first session is ready, the pending one."""
        return self._active or self._pending

    def _open_session(self, persona: Persona, sampling: SamplingParams) -> CallSession:
        # No event is delivered before open_session has returned, so `opened` is always bound.
        session = async_session.open_session(
            self._engine,
            persona,
            sampling,
            lambda event: self._inbox.put_nowait((opened, event)),
        )
        opened = CallSession(session, persona, sampling, self._engine.max_in_flight_frames)
        return opened

    def _close(self, session: CallSession) -> None:
        session.session.close()
        self._sessions.remove(session)

    # Each handler below completes its state change before it returns its events. The consumer of
    # the events may be slow; audio, ticks and new personas arrive in the meantime.

    def _handle(self, session: CallSession, report: SessionEvent | SpeechRejected) -> list[Event]:
        if session not in self._sessions:
            return []  # closed by this call
        if isinstance(report, SessionFrame):
            return self._on_frame(session, report)
        if isinstance(report, SpeechRejected):
            return [report]
        if isinstance(report, Ready):
            return self._on_ready(session)
        return self._on_ended(session, report.error)

    def _on_frame(self, session: CallSession, frame: SessionFrame) -> list[Event]:
        session.received += 1
        session.speech.push(frame.text)
        if session.state is SessionState.ACTIVE:
            # Two sessions at once would be two voices and twice the audio.
            events = [*self._end_draining(), frame]
        elif session.in_flight_frames:
            events = [frame]
        else:
            events = [frame, *self._end_draining()]
        self._push_frames()
        return events

    def _on_ready(self, session: CallSession) -> list[Event]:
        ended: list[Event] = []
        previous = self._active
        if previous is None:
            self._pacer.start(self._clock())
        else:
            # The pacer yields whole frames: the next one is the new session's first, and the
            # previous session still returns its frames in flight.
            ended += self._end_draining()
            previous.state = SessionState.DRAINING
            if not previous.in_flight_frames:
                ended += self._end_draining()
        session.state = SessionState.ACTIVE
        self._say_unspoken()
        self._push_frames()
        return [*ended, SessionStarted(session.persona, session.session.id)]

    def _on_ended(self, session: CallSession, error: PersonaPlexError | None) -> list[Event]:
        if session.state is SessionState.DRAINING:
            return self._end_draining()
        self._sessions.remove(session)
        if session.state is SessionState.PENDING and self._active is not None:
            return [PersonaRejected(session.persona, session.session.id, error)]
        if self._pending is not None:
            self._close(self._pending)
        return [*self._end_draining(), SessionEnded(session.persona, session.session.id, error)]

    def _end_draining(self) -> list[Event]:
        """Close the draining session, if any."""
        session = self._draining
        if session is None:
            return []
        self._close(session)
        return [SessionEnded(session.persona, session.session.id, None)]

    def _say_unspoken(self) -> None:
        active = self._active
        if active is None:
            return
        texts, self._unspoken = self._unspoken, []
        for text in texts:
            try:
                active.session.say(text)
            except PersonaPlexError as error:
                rejected = SpeechRejected(text, active.session.id, error)
                self._inbox.put_nowait((active, rejected))
            else:
                active.speech.expect(text)

    def _push_frames(self) -> None:
        """Push waiting frames to the active session, as far as it may have them in flight."""
        active = self._active
        if active is None:
            return
        limit = active.max_in_flight_frames
        # If the session has ended, its Ended event reports why.
        with suppress(PersonaPlexError):
            while active.in_flight_frames < limit and (frame := self._pacer.take()) is not None:
                active.push(frame)
        # A session that keeps up has fewer than `limit` frames in flight. A frame beyond that waits
        # in the session, and counts towards the frames that may wait.
        waiting = max(0, active.in_flight_frames - (limit - 1))
        self._pacer.trim(max(0, MAX_WAITING_FRAMES - waiting))
