"""Converts the model's inner monologue to Pipecat's text and turn frames."""

from __future__ import annotations

from pipecat.frames.frames import (
    AggregatedTextFrame,
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
)
from pipecat.utils.text.base_text_aggregator import TextType

from pipecat_personaplex.words import TURN_GAP_FRAMES, PieceDecoder


class Transcript:
    """Groups text pieces into words and turns, and returns the Pipecat frames for each.

    A full-duplex model does not announce its turns: the first piece after a gap starts a turn, and
    a gap ends it. The pieces of a word follow each other, so padding or the next word ends it.
    Time is counted in model frames of 80 ms.

    The frames are not interruptible, because an interruption does not stop the model: dropping
    them would lose words and leave turns unbalanced.

    Example::

        transcript = Transcript()
        for frame in transcript.push(model_frame.text):
            await service.push_frame(frame)
    """

    def __init__(self) -> None:
        self._open = False
        self._interrupted = False
        self._word = ""
        self._quiet_frames = 0
        self._decoder = PieceDecoder()

    def push(self, piece: str, *, keep_turn: bool = False) -> list[Frame]:
        """Add the piece of one model frame.

        Args:
            piece: The text; empty for padding.
            keep_turn: Whether a gap ends no turn now, because words are known to follow.

        Returns:
            The frames to push.
        """
        ended = self.close() if self._interrupted else []
        text = self._decoder.decode(piece)
        if not self._open:
            text = text.lstrip()
        if text:
            self._quiet_frames = 0
            started = self._start_turn()
            word = self._end_word() if text[0].isspace() else []
            self._word += text
            return ended + started + word
        if piece:
            return ended  # the start of a character, or a space before the first word
        self._quiet_frames += 1
        if self._quiet_frames >= TURN_GAP_FRAMES and not keep_turn:
            return ended + self.close()
        return ended + self._end_word()

    def interrupt(self) -> None:
        """End the turn before the next piece; the next ``push`` returns the frames that do so.

        This way one task pushes all frames of the transcript, in order.
        """
        self._interrupted = True

    def close(self) -> list[Frame]:
        """End the turn; returns the frames to push, none if no turn is open."""
        self._interrupted = False
        if not self._open:
            return []
        self._word += self._decoder.flush()
        ended = self._end_word()
        self._open = False
        self._quiet_frames = 0
        return ended + _uninterruptible(TTSStoppedFrame(), LLMFullResponseEndFrame())

    def _start_turn(self) -> list[Frame]:
        if self._open:
            return []
        self._open = True
        return _uninterruptible(LLMFullResponseStartFrame(), TTSStartedFrame())

    def _end_word(self) -> list[Frame]:
        """Emit the word so far, if any. Whole words only: clients put spaces between frames."""
        word, self._word = self._word, ""
        if not word:
            return []
        generated = LLMTextFrame(word)
        # The assistant aggregator takes its words from the spoken frame below.
        generated.append_to_context = False
        # SENTENCE, although it is a word: Pipecat sends smaller types to no client. Clients show a
        # segment when it is announced, and then mark it as spoken.
        announced = AggregatedTextFrame(word, text_type=TextType.SENTENCE)
        announced.append_to_context = False
        spoken = TTSTextFrame(word, text_type=TextType.SENTENCE, segment_id=announced.id)
        spoken.includes_inter_frame_spaces = True
        announced.will_be_spoken = spoken.will_be_spoken = True
        return _uninterruptible(generated, announced, spoken)


def _uninterruptible(*frames: Frame) -> list[Frame]:
    for frame in frames:
        frame.interruptible = False
    return list(frames)
