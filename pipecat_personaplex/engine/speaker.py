"""Paced speech: which text token to force in each frame, so that given words are spoken.

The model samples one text token a frame: a word's piece, or padding. It alone knows how long its
voice needs for a word. So the speaker forces only the start of a sentence and the pieces of a word
that has begun; the next word waits until the model itself samples a word, which it then replaces.
Words therefore come at the model's own pace, and none while the model keeps quiet for the caller.

Torch-free. A session owns one speaker and guards it with its lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipecat_personaplex.constants import FRAME_SECONDS, TEXT_EPAD, TEXT_PAD, ZERO_TOKEN
from pipecat_personaplex.errors import SpeechTooLong
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, Speech

SAMPLE = ZERO_TOKEN
"""The code that forces nothing: the model samples its token."""

_PADDING = (TEXT_PAD, TEXT_EPAD)
# Unhurried English has about 15 characters a second, so 1.2 a frame.
_CHARACTERS_PER_FRAME = 1.2
_PAUSES = ".!?:;,"
_PAUSE_FRAMES = 4
# A word is forced if the model has not started one for this long after the last one's length.
_PATIENCE_FRAMES = 10
# Between words the caller is given way to for 10 s at most, so that noise cannot stop a sentence.
_YIELD_FRAMES = 125
# ``when="pause"`` starts after this much padding: the model is not in a sentence of its own.
_GAP_FRAMES = 3
# It interrupts the model's own sentence after 2.4 s.
_START_FRAMES = 30
# After the last word only padding is allowed for about a second: the model would continue.
_TAIL_FRAMES = 12
# A word sounds if the agent is audible from the second to the fourth frame after its first piece.
_SOUND_FRAMES = range(2, 5)


def only_if_word(token: int) -> int:
    """The code that places ``token`` only where the model itself samples a word."""
    return -2 - token


@dataclass(eq=False)
class _Word:
    """A word with its text tokens and the frames that it takes to say."""

    text: str
    pieces: list[int]

    @property
    def frames(self) -> int:
        pause = _PAUSE_FRAMES if self.text[-1] in _PAUSES else 0
        return max(len(self.pieces), round(len(self.text) / _CHARACTERS_PER_FRAME)) + pause


@dataclass(eq=False)
class _Utterance:
    """A speech with the words that are still to be placed."""

    speech: Speech
    words: deque[_Word]
    at_once: bool
    frames: int = field(init=False)

    def __post_init__(self) -> None:
        self.frames = sum(1 + word.frames for word in self.words)


class Speaker:
    """The words that one session has to speak, and how far they have got.

    Once a frame, in this order: ``next`` before the step, ``placed`` and ``sounded`` after it.
    """

    def __init__(self) -> None:
        self._queue: deque[_Utterance] = deque()
        self._current: _Utterance | None = None  # has begun
        self._pieces: deque[int] = deque()  # of the word that has begun
        self._word: _Word | None = None  # the last one that has begun
        self._candidate: _Word | None = None  # what ``next`` has put up for the coming frame
        self._since_word = 0  # frames since the first piece of the last word
        self._waited = 0  # frames that the first speech in the queue has waited
        self._yielded = 0  # frames in a row that a word has given way to the caller
        self._padded = _GAP_FRAMES  # frames of padding in a row
        self._last = TEXT_PAD
        self._tail = 0
        self._held = 0
        self._unheard: deque[tuple[Speech, int]] = deque()  # speech, age of its word in frames
        self._finished: list[Speech] = []  # said or cut, not reported yet

    @property
    def frames_left(self) -> int:
        """About how many frames the words that are not placed yet take; 0 if there are none."""
        waiting = sum(utterance.frames for utterance in self._queue)
        if self._current is None:
            return waiting
        word = 0 if self._word is None else max(1, self._word.frames - self._since_word)
        return waiting + word + sum(1 + word.frames for word in self._current.words)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be forced, so that the caller's loudness is of no interest."""
        return not (self._queue or self._current or self._held or self._tail)

    def say(self, speech: Speech, words: Sequence[tuple[str, list[int]]], *, at_once: bool) -> None:
        """Queue a speech.

        Args:
            speech: Its handle; state and spoken words are written there.
            words: Each word's text and its text tokens, at least one a word.
            at_once: Start in the next frame, whoever is speaking.

        Raises:
            SpeechTooLong: More than ``MAX_SPEECH_FRAMES`` would wait; nothing was queued.
        """
        utterance = _Utterance(speech, deque(_Word(*word) for word in words), at_once)
        waiting = self.frames_left + utterance.frames
        if waiting > MAX_SPEECH_FRAMES:
            raise SpeechTooLong(waiting, MAX_SPEECH_FRAMES)
        self._queue.append(utterance)

    def hush(self, speech: Speech | None = None) -> list[Speech]:
        """Drop the words that have not begun, of one speech or of all.

        Returns:
            The speeches that were cut, in order.
        """
        cut = [u for u in self._queue if speech in (None, u.speech)]
        self._queue = deque(u for u in self._queue if u not in cut)
        if self._current is not None and speech in (None, self._current.speech):
            cut.insert(0, self._current)
            self._current = None  # pieces of the word in hand still follow
        for utterance in cut:
            utterance.words.clear()
            self._finish(utterance.speech, "cut")
        return [utterance.speech for utterance in cut]

    def hold(self, seconds: float) -> None:
        """Keep the agent silent for so long, words to say excepted."""
        self._held = math.ceil(seconds / FRAME_SECONDS)

    def release(self) -> None:
        """End a hold."""
        self._held = 0

    def take_finished(self) -> list[Speech]:
        """Speeches that were said or cut since the last call, once their spoken words are known."""
        unheard = {id(speech) for speech, _ in self._unheard}
        finished = [speech for speech in self._finished if id(speech) not in unheard]
        self._finished = [speech for speech in self._finished if id(speech) in unheard]
        return finished

    def close(self) -> list[Speech]:
        """Cut everything, because the session has ended; returns what is to be reported."""
        self.hush()
        self._unheard.clear()
        return self.take_finished()

    # Once a frame, by the model thread.

    def next(self, caller_speaks: bool) -> int:
        """The code for the next step: a token, ``only_if_word(token)``, or ``SAMPLE``."""
        self._candidate = None
        held, self._held = self._held, max(0, self._held - 1)
        if self._pieces:
            return self._pieces[0]
        if self._current is None and self._may_start(caller_speaks):
            self._begin()
        if self._current is not None and self._current.words:
            return self._next_word(caller_speaks)
        if held:
            return TEXT_PAD
        if self._current is not None:  # its last word is being spoken
            return only_if_word(TEXT_PAD)
        if self._tail:
            self._tail -= 1
            return SAMPLE if caller_speaks else only_if_word(TEXT_PAD)
        return SAMPLE

    def _may_start(self, caller_speaks: bool) -> bool:
        if not self._queue:
            return False
        self._waited += 1
        if self._queue[0].at_once:
            return True
        if caller_speaks:
            return self._waited > _YIELD_FRAMES
        return self._padded >= _GAP_FRAMES or self._waited > _START_FRAMES

    def _begin(self) -> None:
        self._current = self._queue.popleft()
        self._current.speech.state = "speaking"
        self._word, self._since_word = None, 0
        self._waited = self._yielded = 0

    def _next_word(self, caller_speaks: bool) -> int:
        assert self._current is not None
        word = self._current.words[0]
        if self._word is None and self._last != TEXT_EPAD:
            return TEXT_EPAD  # as the model begins a sentence
        self._candidate = word
        due = self._word is None or self._last == TEXT_EPAD
        if not due and self._since_word >= self._word_frames + _PATIENCE_FRAMES:
            self._yielded = self._yielded + 1 if caller_speaks else _YIELD_FRAMES
            due = self._yielded >= _YIELD_FRAMES
        return word.pieces[0] if due else only_if_word(word.pieces[0])

    @property
    def _word_frames(self) -> int:
        return 0 if self._word is None else self._word.frames

    def placed(self, token: int) -> None:
        """Take the text token that the step has put into the next frame."""
        self._since_word += 1
        if self._pieces:
            self._pieces.popleft()
        elif self._candidate is not None and token == self._candidate.pieces[0]:
            self._place_word()
        elif self._current is not None and not self._current.words:
            if self._since_word >= self._word_frames and token in _PADDING:
                self._finish(self._current.speech, "said")
                self._current, self._tail = None, _TAIL_FRAMES
        self._padded = self._padded + 1 if token in _PADDING else 0
        self._last = token

    def _place_word(self) -> None:
        assert self._current is not None and self._candidate is not None
        self._current.words.popleft()
        self._word, self._since_word, self._yielded = self._candidate, 0, 0
        self._pieces.extend(self._candidate.pieces[1:])
        self._unheard.append((self._current.speech, 0))

    def sounded(self, audible: bool) -> None:
        """Take whether the agent's audio of this frame is louder than silence."""
        waiting = [(speech, age + 1) for speech, age in self._unheard]
        self._unheard.clear()
        for speech, age in waiting:
            if audible and age in _SOUND_FRAMES:
                speech.spoken += 1
            elif age < _SOUND_FRAMES[-1]:
                self._unheard.append((speech, age))

    def _finish(self, speech: Speech, state: Literal["said", "cut"]) -> None:
        speech.state = state
        self._finished.append(speech)
