"""One caller's conversation with an engine; it outlives the sessions that serve it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from pipecat_personaplex import async_session
from pipecat_personaplex.async_session import Ended, Ready, SessionEvent
from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.errors import EngineFull, PersonaPlexError
from pipecat_personaplex.interface import EngineLike, SessionFrame, SessionLike
from pipecat_personaplex.service.call_events import (
    Event,
    PersonaRejected,
    PromptChanged,
    SessionEnded,
    SessionStarted,
    SpeechEnded,
    SpeechRejected,
    SpeechStarted,
)
from pipecat_personaplex.service.call_session import CallSession, PromptRequest, SessionState
from pipecat_personaplex.service.pacing import MAX_WAITING_FRAMES, InputPacer, PacingStats
from pipecat_personaplex.service.speech import CallSpeech


@dataclass(frozen=True)
class _PromptDone:
    """A session has replaced its prompt, or failed to."""

    request: PromptRequest
    error: PersonaPlexError | None


_POLL_SECONDS = 0.02

# What a session of the call reports: from another thread, or because of a call of its methods.
_Report = SessionEvent | _PromptDone | SpeechRejected | SpeechEnded


class Call:
    """Feeds the caller's audio to a session in real time and returns what happens as one stream.

    A new persona is a new prompt of the active session where the session supports it; the agent
    then remembers the call. Otherwise a new session takes over from the active one.

    All methods run on the event loop that called ``open``. Sessions report from another thread;
    ``async_session.open_session`` moves these reports to the event loop. Each report carries its
    session, so reports of a session that the call has closed are ignored.

    Args:
        engine: Opens the sessions.
        clock: Returns monotonic seconds.

    Attributes:
        opening: Whether the first session is about to be opened; the user of the call sets it.
        speech: The texts that the agent has to speak.

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
        self._inbox: asyncio.Queue[tuple[CallSession, _Report] | None] = asyncio.Queue()
        self._closed = False
        self.opening = False
        self.speech = CallSpeech()

    @property
    def persona(self) -> Persona | None:
        """The persona of the current session: active, or the first one while it is pending."""
        return self._current.persona if self._current else None

    @property
    def requested_persona(self) -> Persona | None:
        """The persona that was requested last: in effect, or about to be."""
        active = self._active
        if active is not None and active.prompt_request is not None:
            return active.prompt_request.persona
        return self.persona

    @property
    def sampling(self) -> SamplingParams | None:
        """How the current session samples tokens; None if there is no session."""
        return self._current.sampling if self._current else None

    @property
    def session(self) -> SessionLike | None:
        """The current session; None before the first and after the last."""
        return self._current.session if self._current else None

    @property
    def active(self) -> bool:
        """Whether a session receives the caller's audio."""
        return self._active is not None

    @property
    def speech_seconds(self) -> float:
        """As ``CallSpeech.seconds_left``; 0 if no session can speak, now or soon."""
        can_speak = not self._closed and (self.opening or self._current is not None)
        return self.speech.seconds_left if can_speak else 0.0

    @property
    def backlog_frames(self) -> int:
        """Input frames without an output frame yet: those that wait here and those in flight."""
        return self._pacer.waiting + (self._current.in_flight_frames if self._current else 0)

    @property
    def pacing(self) -> PacingStats:
        """Silence inserted into the caller's audio, and audio left out of it, so far."""
        return self._pacer.stats

    def open(self, persona: Persona, sampling: SamplingParams) -> None:
        """Give the agent a persona: the first one, or a new one.

        Until a new persona is in effect, the active session continues with the old one. The new
        sampling applies to it at once if it supports the change. A persona that is not in effect
        yet is replaced; on a full engine its pending session gives up its slot.

        Raises:
            PersonaPlexError: As ``Engine.open_session`` or ``SessionLike.update_prompt``; then
                nothing has changed.
        """
        if self._closed:
            return
        active = self._active
        if active is not None and "prompt" in active.session.features:
            self._update_prompt(active, persona)
        else:
            self._open_next(persona, sampling)
        if active is not None:
            with suppress(PersonaPlexError):
                active.update(sampling)

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

    def push_audio(self, pcm: Pcm) -> None:
        """Add the caller's audio: float32 mono 24 kHz, any length."""
        self._pacer.push(pcm, self._clock())
        self._push_frames()

    def tick(self) -> None:
        """Insert silence if the caller's audio is late; call this about every 20 ms."""
        self._pacer.tick(self._clock())
        self._push_frames()

    async def wait_for_speech(
        self, grace_seconds: float, give_up: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until all texts are spoken and their turn has ended; ``tick`` must go on.

        Args:
            grace_seconds: How much longer than ``speech_seconds`` to wait: for a caller to whom the
                agent gives way, or a session that is still pending or has stalled.
            give_up: Returns whether to stop waiting now.

        Returns:
            False if the time is over and texts are left.
        """
        # By the real clock: the clock that paces the input may have stopped.
        deadline = time.monotonic() + self.speech_seconds + grace_seconds
        while self.speech_seconds and not give_up():
            if time.monotonic() >= deadline:
                return not self.speech.unfinished
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

    def _open_next(self, persona: Persona, sampling: SamplingParams) -> None:
        """Open a session that becomes the active one when it is ready."""
        pending = self._pending
        try:
            opened = self._open_session(persona, sampling)
        except EngineFull:
            if pending is None:
                raise
            self._close(pending)  # it may have the slot
            try:
                opened = self._open_session(persona, sampling)
            except PersonaPlexError:
                self._sessions.append(self._open_session(pending.persona, pending.sampling))
                raise
            pending = None
        if pending is not None:
            self._close(pending)
        self._sessions.append(opened)

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

    def _update_prompt(self, active: CallSession, persona: Persona) -> None:
        request = PromptRequest(persona)
        report = self._reporter(active)
        active.session.update_prompt(
            persona, on_done=lambda error: report(_PromptDone(request, error))
        )
        active.prompt_request = request

    def _reporter(self, session: CallSession) -> Callable[[_Report], None]:
        """A function that moves a session's report to the event loop, from any thread."""
        loop = asyncio.get_running_loop()

        def report(event: _Report) -> None:
            # A closed loop has no listener, and the calling thread must not fail because of it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._inbox.put_nowait, (session, event))

        return report

    def _close(self, session: CallSession) -> None:
        session.session.close()
        self._sessions.remove(session)

    # Each handler below completes its state change before it returns its events. The consumer of
    # the events may be slow; audio, ticks and new personas arrive in the meantime.

    def _handle(self, session: CallSession, report: _Report) -> list[Event]:
        if isinstance(report, SpeechEnded):
            return self._on_speech_ended(report)
        if session not in self._sessions:
            return []  # closed by this call
        match report:
            case SessionFrame():
                return self._on_frame(session, report)
            case SpeechRejected():
                return [report]
            case _PromptDone(request, error):
                return self._on_prompt_done(session, request, error)
            case Ready():
                return self._on_ready(session)
            case Ended(error):
                return self._on_ended(session, error)

    def _on_frame(self, session: CallSession, frame: SessionFrame) -> list[Event]:
        session.received += 1
        events: list[Event] = [frame]
        if session.state is SessionState.ACTIVE:
            begun = self.speech.push(frame.text)
            started = [SpeechStarted(speech, session.session.id) for speech in begun]
            # Two sessions at once would be two voices and twice the audio.
            events = [*self._end_draining(), *started, frame]
        elif not session.in_flight_frames:
            events += self._end_draining()
        self._push_frames()
        return events

    def _on_speech_ended(self, ended: SpeechEnded) -> list[Event]:
        if self.speech.end(ended.speech):
            return [SpeechStarted(ended.speech, ended.session_id), ended]
        return [ended]

    def _on_prompt_done(
        self, session: CallSession, request: PromptRequest, error: PersonaPlexError | None
    ) -> list[Event]:
        latest = request is session.prompt_request
        if latest:
            session.prompt_request = None
        if error is None:
            session.persona = request.persona
            return [PromptChanged(request.persona, session.session.id)]
        # If another request has replaced this one, that one's end is reported.
        return [PersonaRejected(request.persona, session.session.id, error)] if latest else []

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
        self.speech.attach(session.session, self._reporter(session))
        self._push_frames()
        return [*ended, SessionStarted(session.persona, session.session.id)]

    def _on_ended(self, session: CallSession, error: PersonaPlexError | None) -> list[Event]:
        if session.state is SessionState.DRAINING:
            return self._end_draining()
        self._sessions.remove(session)
        if session.state is SessionState.PENDING and self._active is not None:
            return [PersonaRejected(session.persona, session.session.id, error)]
        self.speech.detach()
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
