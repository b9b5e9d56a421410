"""Paced speech: which text token to force in each frame, so that given words are spoken.

The model samples one text token a frame: a word's piece, or padding. It alone knows how long its
voice needs for a word. The speaker therefore forces only the start of a speech and the further
pieces of a word that has begun; the next word waits until the model itself samples a word, which it
then replaces. Words come at the model's own pace, and none while the model is silent for a caller.

Torch-free. A session owns one speaker and guards it with its lock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipecat_personaplex.constants import FRAME_SECONDS, TEXT_EPAD, TEXT_PAD, ZERO_TOKEN
from pipecat_personaplex.errors import SpeechTooLong
from pipecat_personaplex.interface import MAX_SPEECH_FRAMES, Speech

SAMPLE = ZERO_TOKEN
"""The code that forces nothing: the model samples its token."""

# Unhurried English has about 15 characters a second, so 1.2 a frame.
_CHARACTERS_PER_FRAME = 1.2
_PAUSES = ".!?:;,"
_PAUSE_FRAMES = 4
# A word is forced if the model has not started one for this long after the last one's length.
_PATIENCE_FRAMES = 10
# A speech, and each of its words, waits for the caller for 10 s at most: noise cannot stop it.
_YIELD_FRAMES = 125
# ``when="pause"`` starts after this much padding: the model is not in a sentence of its own.
_GAP_FRAMES = 3
# It interrupts the model's own sentence after 2.4 s.
_START_FRAMES = 30
# After the last word only padding is allowed for 1.3 s: the model would continue.
_TAIL_FRAMES = 16
# A word sounds if the agent is audible in one of the three frames that start with its first piece.
# Frames are counted from the step that has placed the piece, which ends one frame earlier.
_SOUND_FRAMES = range(2, 5)
# It may sound later, as behind a comma, unless the model has given way to the caller.
_LATE_SOUND_FRAMES = range(2, 7)
# Frames of silence of the agent's voice after which it gives way to a caller.
_SILENT_FRAMES = 1


def only_if_word(token: int) -> int:
    """The code that places ``token`` only where the model itself samples a word."""
    return -2 - token


@dataclass(eq=False)
class _Word:
    """A word with its text tokens, at least one."""

    text: str
    pieces: list[int]
    repeated: bool = False  # placed a second time, because it did not sound

    @property
    def frames(self) -> int:
        """About how many frames it takes to say, with the pause after it."""
        pause = _PAUSE_FRAMES if self.text[-1] in _PAUSES else 0
        return max(len(self.pieces), round(len(self.text) / _CHARACTERS_PER_FRAME)) + pause


@dataclass(eq=False)
class _Utterance:
    """A speech with the words that have not begun."""

    speech: Speech
    words: deque[_Word]
    at_once: bool
    waited_for_caller: int = 0  # frames at the head of the queue
    waited_for_agent: int = 0

    @property
    def frames(self) -> int:
        """About how many frames its words take, with one of padding before each."""
        return sum(1 + word.frames for word in self.words)


@dataclass(eq=False)
class _Unheard:
    """A word that has begun and of which it is not known whether it sounds."""

    speech: Speech
    word: _Word
    frames: int = 0


class Speaker:
    """The words that one session has to speak, and how far they have got.

    Once a frame, in this order: ``next`` before the step, ``placed`` and ``sounded`` after it.
    While it is ``idle``, only ``placed`` must be called. The other methods may be called at any
    time, also while a step runs.

    Each speech is ``waiting`` in the queue, then ``speaking``, and then ``said`` or ``cut``. One
    speech is spoken at a time, in the order of ``say``.

    Example::

        speaker = Speaker()
        speaker.say(Speech("Hello there.", words=2), [("Hello", [520]), ("there.", [71, 9])], False)
        code = speaker.next(caller_speaks=False)  # TEXT_EPAD: the model is about to speak
    """

    def __init__(self) -> None:
        self._queue: deque[_Utterance] = deque()
        self._current: _Utterance | None = None  # has begun and is not finished
        self._candidate: tuple[_Utterance, _Word] | None = None  # may begin in the running step
        self._word: _Word | None = None  # of ``_current``, the last one that has begun
        self._pieces: deque[int] = deque()  # further pieces of the word that has begun
        self._since_word = 0  # frames since the first piece of the last word
        self._yielded = 0  # frames that the next word has given way to the caller
        self._last = TEXT_PAD  # text token of the newest frame
        self._padded = _GAP_FRAMES  # frames of padding in a row
        self._silent = 0  # frames in a row in which the agent was not audible
        self._tail = 0  # frames in which the model's own words are suppressed
        self._held = 0  # frames of silence left
        self._caller_speaks = False  # in the newest frame
        self._unheard: deque[_Unheard] = deque()
        self._finished: deque[Speech] = deque()  # said or cut, not reported yet

    @property
    def frames_left(self) -> int:
        """About how many frames the words that have not been said take; 0 if there are none."""
        waiting = sum(utterance.frames for utterance in self._queue)
        if self._current is None:
            return waiting
        word = 0 if self._word is None else max(1, self._word.frames - self._since_word)
        return waiting + word + self._current.frames

    @property
    def idle(self) -> bool:
        """Whether there is nothing to force and nothing to report."""
        return not (
            self._queue
            or self._current
            or self._pieces
            or self._held
            or self._tail
            or self._unheard
            or self._finished
        )

    @property
    def listening(self) -> bool:
        """Whether ``sounded`` needs to know if the agent is audible."""
        return self._current is not None or bool(self._unheard)

    def say(self, speech: Speech, words: Sequence[tuple[str, list[int]]], at_once: bool) -> None:
        """Queue a speech.

        Args:
            speech: Its handle; the speaker updates ``state`` and ``spoken``.
            words: Each word's text and its text tokens, at least one a word; at least one word.
            at_once: Whether to start in the next frame, even if somebody speaks.

        Raises:
            SpeechTooLong: More than ``MAX_SPEECH_FRAMES`` would wait. Nothing is queued.
        """
        utterance = _Utterance(speech, deque(_Word(*word) for word in words), at_once)
        waiting = self.frames_left + utterance.frames
        if waiting > MAX_SPEECH_FRAMES:
            raise SpeechTooLong(waiting, MAX_SPEECH_FRAMES)
        self._queue.append(utterance)

    def hush(self, speech: Speech | None = None) -> list[Speech]:
        """Drop the words that have not begun, of one speech or of all; finish the current word.

        A speech whose last word has begun has nothing to drop and will be ``said``.

        Returns:
            The speeches that were cut, in order.
        """
        cut = [each for each in self._queue if speech in (None, each.speech)]
        self._queue = deque(each for each in self._queue if each not in cut)
        current = self._current
        if current is not None and current.words and speech in (None, current.speech):
            cut.insert(0, current)
            self._current = None
            self._tail = _TAIL_FRAMES  # the model would finish the sentence by itself
        for utterance in cut:
            utterance.words.clear()
            self._finish(utterance.speech, "cut")
        return [utterance.speech for utterance in cut]

    def hold(self, seconds: float) -> None:
        """Keep the agent silent for this time, except for words to say."""
        self._held = math.ceil(round(seconds / FRAME_SECONDS, 6))

    def take_finished(self) -> list[Speech]:
        """Return the speeches that ended since the last call, once their spoken words are known."""
        finished = []
        while self._finished and not self._is_unheard(self._finished[0]):
            finished.append(self._finished.popleft())
        return finished

    def close(self) -> None:
        """Cut every speech that has not been said, because the session has ended."""
        for utterance in (self._current, *self._queue):
            if utterance is not None:
                self._finish(utterance.speech, "cut")
        self._current = None
        self._queue.clear()

    # Once a frame, on the model thread.

    def next(self, caller_speaks: bool) -> int:
        """Return the code for the next step: a token, ``only_if_word(token)``, or ``SAMPLE``."""
        self._candidate = None
        spoke, self._caller_speaks = self._caller_speaks, caller_speaks
        held = self._held > 0
        self._held -= held
        if self._pieces:
            return self._pieces[0]
        if self._current is None and self._may_start(caller_speaks):
            self._start()
        if self._current is not None and self._current.words:
            return self._next_word(self._current, caller_speaks)
        # The model adds no words while the last one is spoken, nor for some frames after that.
        # These frames are counted in a hold, too.
        silent = self._current is not None or self._tail > 0
        if self._current is None and self._tail:
            # An answer begins only after the caller's last word.
            answers = spoke and not caller_speaks
            self._tail = 0 if answers else self._tail - 1
            silent = not answers
        if held:
            return TEXT_PAD
        # While a speech waits for the caller, the model begins no sentence of its own.
        waits = bool(self._queue) and self._padded >= _GAP_FRAMES
        return only_if_word(TEXT_PAD) if silent or waits else SAMPLE

    def _may_start(self, caller_speaks: bool) -> bool:
        """Whether the first speech in the queue begins now; else it has waited one frame more."""
        if not self._queue:
            return False
        first = self._queue[0]
        if first.at_once:
            return True
        if caller_speaks:
            first.waited_for_caller += 1
            return first.waited_for_caller > _YIELD_FRAMES
        if self._padded >= _GAP_FRAMES:
            return True
        first.waited_for_agent += 1
        return first.waited_for_agent > _START_FRAMES

    def _start(self) -> None:
        self._current = self._queue.popleft()
        self._current.speech.state = "speaking"
        self._word, self._since_word = None, 0
        self._yielded = self._tail = self._silent = 0

    def _next_word(self, current: _Utterance, caller_speaks: bool) -> int:
        due = self._word is None or self._is_overdue(caller_speaks)
        if due and self._last != TEXT_EPAD:
            return TEXT_EPAD  # as the model begins to speak
        if not due and caller_speaks and self._is_silent:
            # The model has given way. A word that it samples now, as a listener does, would take
            # the token and not the voice.
            return only_if_word(TEXT_PAD)
        word = current.words[0]
        self._candidate = current, word
        # The model always samples a word after EPAD.
        return word.pieces[0] if self._last == TEXT_EPAD else only_if_word(word.pieces[0])

    @property
    def _is_silent(self) -> bool:
        """Whether the agent's voice pauses, and not only because the last word is yet to sound."""
        return self._since_word >= _SOUND_FRAMES[-1] and self._silent >= _SILENT_FRAMES

    def _is_overdue(self, caller_speaks: bool) -> bool:
        """Whether the next word has waited long enough for the model, and for the caller."""
        if self._word is None or self._since_word < self._word.frames + _PATIENCE_FRAMES:
            return False
        self._yielded = self._yielded + 1 if caller_speaks else _YIELD_FRAMES
        return self._yielded >= _YIELD_FRAMES

    def placed(self, token: int) -> None:
        """Take the text token that the step has placed in the next frame."""
        self._since_word += 1
        if self._pieces:
            self._pieces.popleft()
        elif self._candidate is not None and token == self._candidate[1].pieces[0]:
            self._begin_word(*self._candidate)
        elif self._current is not None and not self._current.words:
            self._end_speech(self._current)
        self._padded = self._padded + 1 if token <= TEXT_PAD else 0
        self._last = token

    def _begin_word(self, utterance: _Utterance, word: _Word) -> None:
        if utterance.words:  # else the speech was cut during the step, and this word is its last
            utterance.words.popleft()
        self._word, self._since_word, self._yielded = word, 0, 0
        self._pieces.extend(word.pieces[1:])
        self._unheard.append(_Unheard(utterance.speech, word))

    def _end_speech(self, current: _Utterance) -> None:
        """Finish a speech if its last word has been spoken and will not be repeated."""
        assert self._word is not None, "a speech without words left has begun one"
        if self._since_word >= max(self._word.frames, _SOUND_FRAMES[-1]):
            self._finish(current.speech, "said")
            self._current, self._tail = None, _TAIL_FRAMES

    def sounded(self, audible: bool) -> None:
        """Take whether the agent's audio of this frame is louder than silence."""
        self._silent = 0 if audible else self._silent + 1
        waiting, self._unheard = self._unheard, deque()
        for word in waiting:
            word.frames += 1
            if audible and word.frames in _LATE_SOUND_FRAMES:
                word.speech.spoken += 1
            elif word.frames == _SOUND_FRAMES[-1] and self._repeat(word.word):
                continue
            elif word.frames < _LATE_SOUND_FRAMES[-1]:
                self._unheard.append(word)

    def _repeat(self, word: _Word) -> bool:
        """Say a word again if it did not sound because the model gave way; whether it does so.

        The caller may begin in the frame in which a word has been placed. Each word is repeated at
        most once, so that a noisy line cannot keep a speech from ending.
        """
        last = word is self._word and not self._pieces
        if self._current is None or not last or not self._caller_speaks or word.repeated:
            return False
        word.repeated = True
        self._current.words.appendleft(word)
        return True

    def _is_unheard(self, speech: Speech) -> bool:
        return any(word.speech is speech for word in self._unheard)

    def _finish(self, speech: Speech, state: Literal["said", "cut"]) -> None:
        speech.state = state
        self._finished.append(speech)
