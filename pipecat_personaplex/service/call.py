"""One caller's conversation with an engine, across changes of persona."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import EngineFull, PersonaPlexError
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, EngineLike, SessionFrame, SessionLike
from pipecat_personaplex.service.forced_speech import ForcedSpeech, most_frames
from pipecat_personaplex.service.pacing import MAX_WAITING_FRAMES, InputPacer, PacingStats


@dataclass(frozen=True)
class SessionStarted:
    """A session answers the caller from now on."""

    persona: Persona


@dataclass(frozen=True)
class SessionEnded:
    """A session that had started is over; None if it was closed on purpose."""

    persona: Persona
    error: PersonaPlexError | None


@dataclass(frozen=True)
class PersonaRejected:
    """The session of a new persona failed before it was ready; the old one goes on."""

    persona: Persona
    error: PersonaPlexError | None


@dataclass(frozen=True)
class SpeechRejected:
    """Words that the session would not say."""

    text: str
    error: PersonaPlexError


@dataclass(frozen=True)
class SpeechCut:
    """The agent's turn is over in the transcript, though the model goes on."""


Event = SessionFrame | SessionStarted | SessionEnded | PersonaRejected | SpeechRejected | SpeechCut


@dataclass(eq=False)
class _Line:
    """A session with what the call knows of it."""

    persona: Persona
    sampling: SamplingParams
    max_in_flight_frames: int
    session: SessionLike = field(init=False)
    speech: ForcedSpeech = field(default_factory=ForcedSpeech)
    started: bool = False
    pushed: int = 0
    answered: int = 0

    @property
    def owed(self) -> int:
        """Frames it was given and has not answered, those it dropped aside."""
        owed = self.pushed - self.answered
        # Asked for only where it matters: a short queue drops what would be owed for ever.
        return (
            owed - self.session.stats().dropped_frames
            if owed >= self.max_in_flight_frames
            else owed
        )

    def update(self, sampling: SamplingParams) -> None:
        self.session.update(sampling)
        self.sampling = sampling


@dataclass(frozen=True)
class _Over:
    """A session's ``on_end``."""

    error: PersonaPlexError | None


@dataclass(frozen=True)
class _Ready:
    """A session's prompt is in."""


class Call:
    """Feeds sessions at the pace of the clock and merges what comes back into one stream.

    Everything here runs on the event loop that called ``open``; sessions report from their own
    thread, and only through the inbox. Each report carries its session, so what a closed one
    still says goes nowhere.

    Args:
        engine: Where sessions are opened.
        clock: Monotonic seconds.
    """

    def __init__(self, engine: EngineLike, clock: Callable[[], float] = time.monotonic):
        self._engine = engine
        self._clock = clock
        self._pacer = InputPacer()
        # Never long: a session answers what it is given, and it is given 12.5 frames a second.
        self._inbox: asyncio.Queue[tuple[_Line | None, object]] = asyncio.Queue()
        self._line: _Line | None = None  # answers the caller
        self._next: _Line | None = None  # being prefilled, to take over
        self._previous: _Line | None = None  # has handed over and owes its last frames
        self._unsaid: list[str] = []
        self._closed = False

    @property
    def persona(self) -> Persona | None:
        """Who answers the caller, or will once ready; None if nobody does."""
        return self._line.persona if self._line else None

    @property
    def sampling(self) -> SamplingParams | None:
        """How they draw tokens; None if nobody does."""
        return self._line.sampling if self._line else None

    @property
    def speech_seconds(self) -> float:
        """What is yet to be said takes no longer than this; 0 if nothing is, or nobody can.

        What counts are words given to ``say``, up to the end of the turn they are in.
        """
        if self._closed or self._line is None:
            return 0.0
        frames = self._line.speech.frames_left + sum(map(most_frames, self._unsaid))
        return min(frames, MAX_SPEECH_FRAMES) * FRAME_SECONDS

    @property
    def owed_frames(self) -> int:
        """Input frames not answered yet, wherever they wait."""
        return self._pacer.waiting + (self._line.owed if self._line else 0)

    @property
    def pacing(self) -> PacingStats:
        """What was done to the caller's audio to keep it in time."""
        return self._pacer.stats

    def open(self, persona: Persona, sampling: SamplingParams) -> None:
        """Open a session, or have one take over from the session there is once it is ready.

        Until then the old one goes on answering, and draws in the new way where it can; if it is
        not ready itself it is replaced.

        Raises:
            PersonaPlexError: As ``Engine.open_session``; then nothing has changed.
        """
        if self._closed:
            return
        # A session that nobody has heard yet gives way, with its slot if need be.
        unheard = self._next or (self._line if self._line and not self._line.started else None)
        try:
            line = self._open_line(persona, sampling)
        except EngineFull:
            if unheard is None:
                raise
            unheard.session.close()
            line = self._open_line(persona, sampling)
        if unheard is not None:
            unheard.session.close()
        if self._line is None or self._line is unheard:
            self._line = line
        else:
            self._next = line
            with suppress(PersonaPlexError):
                self._line.update(sampling)

    def update(self, sampling: SamplingParams) -> None:
        """Draw tokens in a new way from the next frame on.

        Raises:
            PersonaPlexError: As ``SessionLike.update``; then nothing has changed.
        """
        if self._line is not None:
            self._line.update(sampling)
        if self._next is not None:
            # One that has ended says so through on_end.
            with suppress(PersonaPlexError):
                self._next.update(sampling)

    def say(self, text: str) -> None:
        """Have the agent say these words, once it can."""
        self._unsaid.append(text)
        self._say()

    def hear(self, pcm: Pcm) -> None:
        """Take the caller's audio: float32 mono 24 kHz, any length."""
        self._pacer.feed(pcm, self._clock())
        self._pump()

    def tick(self) -> None:
        """Look at the clock; to be called every 20 ms or so."""
        self._pacer.tick(self._clock())
        self._pump()

    def cut(self) -> None:
        """Put a ``SpeechCut`` among the events."""
        self._inbox.put_nowait((None, SpeechCut()))

    def close(self) -> None:
        """Close every session and end the events; does nothing if done before."""
        if self._closed:
            return
        self._closed = True
        for line in (self._line, self._next, self._previous):
            if line is not None:
                line.session.close()
        self._inbox.put_nowait((None, None))

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order, until the call is closed."""
        while True:
            line, report = await self._inbox.get()
            if self._closed:
                break
            for event in self._handle(line, report):
                yield event
        for line in (self._previous, self._line):
            if line is not None and line.started:
                yield SessionEnded(line.persona, None)
        self._line = self._next = self._previous = None

    def _open_line(self, persona: Persona, sampling: SamplingParams) -> _Line:
        line = _Line(persona, sampling, self._engine.max_in_flight_frames)
        loop = asyncio.get_running_loop()

        def report(what: object) -> None:
            # After the loop has closed there is nobody to tell, and the thread that calls is not
            # to be bothered with it.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._inbox.put_nowait, (line, what))

        line.session = self._engine.open_session(
            persona,
            sampling,
            on_ready=lambda: report(_Ready()),
            on_frame=report,
            on_end=lambda error: report(_Over(error)),
        )
        return line

    # Each of these does all of its work before anybody learns of it: a listener takes its time,
    # and input, ticks and new personas come in meanwhile.

    def _handle(self, line: _Line | None, report: object) -> list[Event]:
        if isinstance(report, SpeechCut):
            return [report]
        if line is None or line not in (self._line, self._next, self._previous):
            return []
        if isinstance(report, SessionFrame):
            return self._answered(line, report)
        if isinstance(report, SpeechRejected):
            return [report]
        if isinstance(report, _Over):
            return self._over(line, report.error)
        return self._took_over(line)

    def _answered(self, line: _Line, frame: SessionFrame) -> list[Event]:
        line.answered += 1
        line.speech.push(frame.text)
        # Two sessions at once would be two voices, and twice the audio.
        ended = self._retire() if line is self._line else []
        if line is self._previous and not line.owed:
            ended = self._retire()
        self._pump()
        return [*ended, frame] if line is self._line else [frame, *ended]

    def _took_over(self, line: _Line) -> list[Event]:
        ended: list[Event] = []
        line.started = True
        if line is self._next:
            # Frames are whole, so the next one is the first that the new session hears; the old
            # one still answers what it has heard.
            ended += self._retire()
            self._previous, self._line, self._next = self._line, line, None
            if self._previous is not None and not self._previous.owed:
                ended += self._retire()
        else:
            self._pacer.start(self._clock())
        self._say()
        self._pump()
        return [*ended, SessionStarted(line.persona)]

    def _over(self, line: _Line, error: PersonaPlexError | None) -> list[Event]:
        if line is self._next:
            self._next = None
            return [PersonaRejected(line.persona, error)]
        if line is self._previous:
            return self._retire()
        self._line = None
        if self._next is not None:
            self._next.session.close()
            self._next = None
        return [*self._retire(), SessionEnded(line.persona, error)]

    def _retire(self) -> list[Event]:
        line, self._previous = self._previous, None
        if line is None:
            return []
        line.session.close()
        return [SessionEnded(line.persona, None)]

    def _say(self) -> None:
        if self._line is None or not self._line.started:
            return
        texts, self._unsaid = self._unsaid, []
        for text in texts:
            try:
                self._line.session.say(text)
            except PersonaPlexError as error:
                self._inbox.put_nowait((self._line, SpeechRejected(text, error)))
            else:
                self._line.speech.expect(text)

    def _pump(self) -> None:
        line = self._line
        if line is None or not line.started:
            return
        # A session that has ended says so through on_end.
        with suppress(PersonaPlexError):
            while (
                line.owed < line.max_in_flight_frames and (frame := self._pacer.take()) is not None
            ):
                line.session.push(frame)
                line.pushed += 1
        # What waits in the session counts too.
        behind = max(0, line.owed - (line.max_in_flight_frames - 1))
        self._pacer.keep(max(0, MAX_WAITING_FRAMES - behind))
