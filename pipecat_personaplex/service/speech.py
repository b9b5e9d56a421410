"""Texts that the agent has to speak, and how far it has got with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from pipecat_personaplex.constants import FRAME_SECONDS
from pipecat_personaplex.errors import PersonaPlexError
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, SessionLike, Speech
from pipecat_personaplex.service.call_events import SpeechEnded, SpeechRejected
from pipecat_personaplex.words import TURN_GAP_FRAMES

# Unhurried English has about 15 bytes a second, so 1.2 a frame (80 ms).
_BYTES_PER_FRAME = 1.2
# Of each word: the padding before it, and a pause after it.
_WORD_OVERHEAD_FRAMES = 3
_GAP_SECONDS = TURN_GAP_FRAMES * FRAME_SECONDS
# A turn counts as over this long after its text: the model may go on with words of its own.
_MAX_TURN_FRAMES = 63


@dataclass(frozen=True, eq=False)
class RequestedText:
    """A text that the agent is to speak.

    Attributes:
        text: The words.
        when: As for ``SessionLike.say``.
        interruptible: Whether the caller cuts the text by speaking.
    """

    text: str
    when: Literal["pause", "now"]
    interruptible: bool


def estimated_seconds(texts: Iterable[str]) -> float:
    """About how long speaking these texts takes; at most what a session accepts."""
    frames = sum(
        _WORD_OVERHEAD_FRAMES + len(word.encode()) / _BYTES_PER_FRAME
        for text in texts
        for word in text.split()
    )
    return min(frames, MAX_SPEECH_FRAMES) * FRAME_SECONDS


class CallSpeech:
    """The texts of one call, from the request until they are spoken and their turn has ended.

    Texts wait until a session is active. It updates each ``Speech`` on another thread, and calls
    back when the text was said or cut. A turn ends with a gap in the inner monologue, as every
    turn of the agent does.
    """

    def __init__(self) -> None:
        self._session: SessionLike | None = None
        self._report: Callable[[SpeechEnded | SpeechRejected], object] = lambda report: None
        self._requested: list[RequestedText] = []  # for a session that is not active yet
        self._waiting: dict[Speech, RequestedText] = {}  # not seen to have begun
        self._speaking: dict[Speech, RequestedText] = {}
        self._turn_frames = 0  # within which the turn of the last text ends, at the latest
        self._quiet_frames = 0

    @property
    def seconds_left(self) -> float:
        """About how long it takes until all texts are spoken and their turn has ended.

        0 once this is so.
        """
        texts = [text.text for text in (*self._speaking.values(), *self._waiting.values())]
        texts += [text.text for text in self._requested]
        return estimated_seconds(texts) + _GAP_SECONDS if texts or self._turn_frames else 0.0

    @property
    def speaking(self) -> bool:
        """Whether a text has begun and is neither said nor cut."""
        return bool(self._speaking)

    @property
    def unfinished(self) -> bool:
        """Whether a text is neither said nor cut."""
        return bool(self._requested or self._waiting or self._speaking)

    def attach(
        self, session: SessionLike, report: Callable[[SpeechEnded | SpeechRejected], object]
    ) -> None:
        """Speak the requested texts, and those to come, in this session.

        Texts that another session has not finished end with that session.

        Args:
            session: The active session.
            report: Called on any thread with the end of each text, or with its refusal.
        """
        self.detach()
        self._session, self._report = session, report
        requested, self._requested = self._requested, []
        for text in requested:
            self.say(text)

    def detach(self) -> None:
        """Store the texts to come for another session: this one is over, and so are its texts."""
        self._session = None
        self._waiting.clear()
        self._speaking.clear()
        self._turn_frames = 0

    def say(self, text: RequestedText) -> None:
        """Have the agent speak a text as soon as a session is active."""
        if self._session is None:
            self._requested.append(text)
            return
        session_id, report = self._session.id, self._report
        try:
            speech = self._session.say(
                text.text,
                when=text.when,
                on_done=lambda speech: report(SpeechEnded(speech, session_id)),
            )
        except PersonaPlexError as error:
            report(SpeechRejected(text.text, session_id, error))
        else:
            self._waiting[speech] = text

    def push(self, piece: str) -> list[Speech]:
        """Add the text piece of one output frame, empty for padding.

        Returns:
            The speeches that have begun since the last call.
        """
        self._quiet_frames = 0 if piece else self._quiet_frames + 1
        self._turn_frames = max(0, self._turn_frames - 1)
        if self._quiet_frames >= TURN_GAP_FRAMES:
            self._turn_frames = 0
        begun = [speech for speech in self._waiting if speech.state == "speaking"]
        for speech in begun:
            self._speaking[speech] = self._waiting.pop(speech)
        return begun

    def end(self, speech: Speech) -> bool:
        """Remove a speech that was said or cut.

        Returns:
            Whether it had begun, and ``push`` has not returned it.
        """
        waited = self._waiting.pop(speech, None) is not None
        self._speaking.pop(speech, None)
        if speech.state == "said" and self._quiet_frames < TURN_GAP_FRAMES:
            self._turn_frames = _MAX_TURN_FRAMES
        return waited and (speech.state == "said" or speech.spoken > 0)

    def interrupt(self) -> None:
        """Cut interruptible texts because the caller speaks.

        Nothing is cut unless an interruptible text has begun: a text that waits for a pause goes
        on waiting. Once one has begun, those behind it are cut as well.
        """
        texts = (*self._speaking.items(), *self._waiting.items())
        if any(text.interruptible and speech.state == "speaking" for speech, text in texts):
            self.hush()

    def cut(self, texts: Iterable[RequestedText]) -> None:
        """Cut these texts as far as they have not been spoken."""
        unwanted = set(texts)
        self._requested = [text for text in self._requested if text not in unwanted]
        for speech, text in (*self._speaking.items(), *self._waiting.items()):
            if text in unwanted and self._session is not None:
                with suppress(PersonaPlexError):
                    self._session.hush(speech)

    def hush(self) -> None:
        """Cut all interruptible texts."""
        self._requested = [text for text in self._requested if not text.interruptible]
        for speech, text in (*self._speaking.items(), *self._waiting.items()):
            if text.interruptible and self._session is not None:
                # If the session has ended, its texts are cut already.
                with suppress(PersonaPlexError):
                    self._session.hush(speech)
