"""A speaker with a fake model, frame by frame."""

from __future__ import annotations

from collections.abc import Callable

from pipecat_personaplex.constants import TEXT_PAD
from pipecat_personaplex.engine.speaker import SAMPLE, Speaker
from pipecat_personaplex.interface import Speech

OWN_WORD = 9_999
"""A word that the model samples by itself."""


class Agent:
    """A speaker with a fake model.

    Attributes:
        tokens: The text token of each frame so far.
        sample: The model's own token of a frame, from the tokens before it.
        audible: Whether the agent's voice sounds.
    """

    def __init__(
        self,
        sample: Callable[[list[int]], int] = lambda tokens: TEXT_PAD,
        audible: bool = True,
    ):
        self.speaker = Speaker()
        self.tokens: list[int] = []
        self.sample = sample
        self.audible = audible
        self.finished: list[Speech] = []
        self.texts: dict[int, str] = {}

    def say(self, text: str, at_once: bool = False) -> Speech:
        """Queue a text; each letter is a token."""
        speech = Speech(text, len(text.split()))
        words = []
        for word in text.split():
            pieces = [100 + ord(letter) for letter in word]
            self.texts |= dict(zip(pieces, word, strict=True))
            words.append((word, pieces))
        self.speaker.say(speech, words, at_once)
        return speech

    def step(self, caller_speaks: bool = False, during: Callable[[], object] = lambda: None) -> int:
        """One frame; ``during`` is called by another thread while the step runs."""
        code = SAMPLE if self.speaker.idle else self.speaker.next(caller_speaks)
        own = self.sample(self.tokens)
        token = own
        if code >= 0:
            token = code
        elif code < SAMPLE and own > TEXT_PAD:
            token = -2 - code
        during()
        self.speaker.placed(token)
        self.tokens.append(token)
        if not self.speaker.idle:
            self.speaker.sounded(self.audible)
            self.finished += self.speaker.take_finished()
        return token

    def steps(self, count: int, caller_speaks: bool = False) -> list[int]:
        return [self.step(caller_speaks) for _ in range(count)]

    @property
    def letters(self) -> str:
        return "".join(self.texts.get(token, "") for token in self.tokens)
