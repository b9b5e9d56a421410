"""From the model's inner monologue to the turns that Pipecat knows."""

from __future__ import annotations

from pipecat.frames.frames import (
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
    """Groups text pieces into words and turns, and says which frames to push for each.

    A full-duplex model never announces a turn: the first piece after a gap opens one, and a gap
    ends it. A word's pieces come in a row, so the next word or padding ends it. Time is counted
    in the model's own frames, of which there is one every 80 ms.

    No frame made here may be dropped by an interruption, which the model does not know about:
    starts and ends stay balanced and no word is lost.
    """

    def __init__(self) -> None:
        self._open = False
        self._word = ""
        self._quiet_frames = 0
        self._decoder = PieceDecoder()

    def push(self, piece: str) -> list[Frame]:
        """Take one model frame's piece, empty for padding; the frames to push for it."""
        text = self._decoder.decode(piece)
        if not self._open:
            text = text.lstrip()
        if text:
            self._quiet_frames = 0
            opening = self._opening()
            ended = self._word_ended() if text[0].isspace() else []
            self._word += text
            return opening + ended
        if piece:
            return []  # inside a character, or a space that opens nothing
        self._quiet_frames += 1
        if self._quiet_frames >= TURN_GAP_FRAMES:
            return self.close()
        return self._word_ended()

    def close(self) -> list[Frame]:
        """End the turn, if one is open."""
        if not self._open:
            return []
        self._word += self._decoder.flush()
        ended = self._word_ended()
        self._open = False
        self._quiet_frames = 0
        return ended + _kept(TTSStoppedFrame(), LLMFullResponseEndFrame())

    def _word_ended(self) -> list[Frame]:
        """Say the word so far, if any: clients put a space between what they are sent."""
        word, self._word = self._word, ""
        return self._spoken(word) if word else []

    def _opening(self) -> list[Frame]:
        if self._open:
            return []
        self._open = True
        return _kept(LLMFullResponseStartFrame(), TTSStartedFrame())

    def _spoken(self, text: str) -> list[Frame]:
        generated = LLMTextFrame(text)
        # The assistant aggregator takes its words from the spoken frame below.
        generated.append_to_context = False
        # Pieces, yet of type SENTENCE: clients are not sent smaller types.
        spoken = TTSTextFrame(text, text_type=TextType.SENTENCE)
        spoken.includes_inter_frame_spaces = True
        return _kept(generated, spoken)


def _kept(*frames: Frame) -> list[Frame]:
    for frame in frames:
        frame.interruptible = False
    return list(frames)
