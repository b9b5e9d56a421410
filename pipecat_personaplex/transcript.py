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

from pipecat_personaplex.words import PieceDecoder

TURN_GAP_FRAMES = 10
"""Frames (80 ms) without text that end the agent's turn."""


class Transcript:
    """Groups text pieces into turns, and says which frames to push for each.

    A full-duplex model never announces a turn: the first piece after a gap opens one, and a gap
    ends it. Time is counted in the model's own frames, of which there is one every 80 ms.

    No frame made here may be dropped by an interruption, which the model does not know about:
    starts and ends stay balanced and no word is lost.
    """

    def __init__(self) -> None:
        self._open = False
        self._quiet_frames = 0
        self._decoder = PieceDecoder()

    def push(self, piece: str) -> list[Frame]:
        """Take one model frame's piece, empty for padding; the frames to push for it."""
        text = self._decoder.decode(piece)
        if not self._open:
            text = text.lstrip()
        if text:
            self._quiet_frames = 0
            return self._opening() + self._spoken(text)
        self._quiet_frames += 1
        return self.close() if self._quiet_frames >= TURN_GAP_FRAMES else []

    def close(self) -> list[Frame]:
        """End the turn, if one is open."""
        if not self._open:
            return []
        self._open = False
        self._quiet_frames = 0
        tail = self._decoder.flush()
        return (self._spoken(tail) if tail else []) + _kept(
            TTSStoppedFrame(), LLMFullResponseEndFrame()
        )

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
