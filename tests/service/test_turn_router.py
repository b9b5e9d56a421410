"""What the router of a hold is asked, transcript by transcript."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipecat.frames.frames import Frame, InterimTranscriptionFrame, TranscriptionFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.processors.frame_processor import FrameDirection

from pipecat_personaplex import Hold
from pipecat_personaplex.service.delegation.turn_router import TurnRouter


class Listening:
    """A turn router whose transcripts a test supplies.

    Attributes:
        asked: The texts that its ``Hold.when`` was asked about.
        accepted: How many of them it has accepted.
    """

    def __init__(self, *words: str):
        self.asked: list[str] = []
        self.accepted = 0
        self._observers: list[BaseObserver] = []

        def route(text: str) -> bool:
            self.asked.append(text)
            return all(word in text for word in words)

        front: Any = SimpleNamespace(
            pipeline_worker=SimpleNamespace(add_observer=self._observers.append)
        )
        self.router = TurnRouter(front, Hold.when(route), list, self._accept)
        self.router.open()

    def _accept(self) -> None:
        self.accepted += 1

    async def hears(self, frame: Frame) -> None:
        source: Any = None
        for observer in self._observers:
            await observer.on_push_frame(
                FramePushed(source, source, frame, FrameDirection.DOWNSTREAM, 0)
            )

    async def interim(self, text: str) -> None:
        await self.hears(InterimTranscriptionFrame(text, "caller", "now"))

    async def final(self, text: str) -> None:
        await self.hears(TranscriptionFrame(text, "caller", "now"))


async def test_a_sentence_in_two_transcripts_is_accepted_with_the_second() -> None:
    call = Listening("cancel", "order")
    await call.final(" I want to cancel")
    assert not call.accepted
    await call.final(" my order.")
    assert call.accepted == 1
    assert call.asked == ["I want to cancel", "I want to cancel my order."]


async def test_an_interim_transcript_follows_the_final_ones_and_is_replaced() -> None:
    call = Listening()
    await call.final("I want to cancel")
    await call.interim("my")
    call.router.new_turn()  # reported after the transcript that begins the turn
    await call.interim("my order")
    assert call.asked[1:] == ["I want to cancel my", "I want to cancel my order"]


async def test_the_next_turn_begins_with_its_own_words() -> None:
    call = Listening()
    await call.final("I want to cancel")
    call.router.accepts("I want to cancel")
    await call.interim("Thanks")
    assert call.asked[-1] == "Thanks"
