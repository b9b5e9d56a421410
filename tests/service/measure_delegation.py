"""Measures delegation: spoken callers, nano in real time, Pipecat's worker, an LLM behind HTTP.

Run ``python -m tests.service.measure_delegation --help``. Each call has three turns: two that need
a tool, and one that the model answers by itself. The tool's answers differ from those that nano has
learnt, so that an invented answer shows. The caller's transcript is the text that he speaks, 0.3 s
after its end; with ``--whisper`` it is what Pipecat's local Whisper service makes of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Annotated, Any

import numpy as np
import typer
from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams

from pipecat_personaplex import Engine, EngineConfig, Hold, PersonaPlexLLMService
from pipecat_personaplex.constants import SAMPLE_RATE
from tests.helpers.delegation import DelegatedCall
from tests.helpers.llm import Rule, StubLLM
from training.nano import script, wordings
from training.nano.espeak import speaker  # noqa: F401  fails at once if espeak is missing
from training.nano.turns import speak_turn
from training.nano.voices import AGENT_VOICES, held_out_voices

TRANSCRIPT_SECONDS = 0.3
TURN_SECONDS = 0.1  # of the turn strategy; see tests/helpers/delegation.py
GAP_SECONDS = 9.0  # between turns, for the answer
TOOL_TURNS = ("menu", "drinks")
CHAT_TURN = "how_are_you"
ANSWERS = {
    "menu": "The kitchen is closed, please come back tomorrow.",
    "drinks": "All our drinks are sold out today.",
}


@dataclass
class Turn:
    """One turn of a caller.

    Attributes:
        intent: What he wants.
        text: His words.
        start: When he begins, in seconds of the call.
        end: When he ends.
        words: What the agent has said until the next turn, with times in seconds of the call.
        requests: When the backend's model was asked.
        written: When it had written its last answer.
        calls: Calls of the right tool.
    """

    intent: str
    text: str
    start: float
    end: float
    words: list[tuple[float, str]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    written: float | None = None
    calls: int = 0

    @property
    def said(self) -> str:
        return " ".join(word.strip() for _, word in self.words)


class Tape(FrameProcessor):
    """Speech-to-text that knows the words."""

    def __init__(self, turns: Sequence[Turn]):
        super().__init__()
        self._heard = 0.0
        self._plan: list[tuple[float, Frame]] = []
        for turn in turns:
            first = InterimTranscriptionFrame(turn.text.split()[0], "caller", "now")
            final = TranscriptionFrame(turn.text, "caller", "now", finalized=True)
            self._plan += [(turn.start + 0.4, first), (turn.end + TRANSCRIPT_SECONDS, final)]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._heard += frame.num_frames / frame.sample_rate
            while self._plan and self._heard >= self._plan[0][0]:
                await self.push_frame(self._plan.pop(0)[1])
        await self.push_frame(frame, direction)


def caller(seed: int) -> tuple[list[Turn], np.ndarray]:
    """The turns of a call, and the caller's audio, int16 [n]."""
    random = np.random.default_rng([91, seed])
    intents = [TOOL_TURNS[seed % 2], CHAT_TURN, TOOL_TURNS[(seed + 1) % 2]]
    voices = held_out_voices()
    turns: list[Turn] = []
    pieces: list[np.ndarray] = []
    at = 0.0
    for intent in intents:
        text = str(random.choice(wordings.wordings(intent, held_out=True)))
        speech = speak_turn(text, voices[seed % len(voices)], random, False).pcm
        pieces += [np.zeros(SAMPLE_RATE, np.float32), speech]
        turns.append(Turn(intent, text, at + 1.0, at + 1.0 + len(speech) / SAMPLE_RATE))
        pieces.append(np.zeros(round(GAP_SECONDS * SAMPLE_RATE), np.float32))
        at = sum(map(len, pieces)) / SAMPLE_RATE
    pcm = np.clip(np.concatenate(pieces), -1, 1)
    return turns, (pcm * 32_767).astype(np.int16)


async def run_call(engine: Engine, seed: int, hold: Hold | None, whisper: bool) -> list[Turn]:
    """Run a call with a backend, or without one if ``hold`` is None."""
    random = np.random.default_rng([92, seed])
    turns, pcm = caller(seed)
    name = script.sample_character(random, "restaurant")
    settings = PersonaPlexLLMService.Settings(
        voice=list(AGENT_VOICES)[seed % 2], system_instruction=name.prompt, seed=seed
    )
    rules = [
        Rule(re.escape(turn.text.rstrip("?!.")[:20]), f">> {ANSWERS[turn.intent]}", turn.intent)
        for turn in turns
        if turn.intent in ANSWERS
    ]
    if whisper:
        rules = [Rule("drink", f">> {ANSWERS['drinks']}", "drinks")]
        rules += [Rule("menu|eat|serve|food|have", f">> {ANSWERS['menu']}", "menu")]
    called: list[str] = []

    async def menu(params: FunctionCallParams) -> None:
        """What there is to eat."""
        called.append("menu")
        await asyncio.sleep(0.2)
        await params.result_callback("closed")

    async def drinks(params: FunctionCallParams) -> None:
        """What there is to drink."""
        called.append("drinks")
        await asyncio.sleep(0.2)
        await params.result_callback("sold out")

    async with StubLLM(rules, delay=float(random.uniform(0.2, 3.0)) / 2) as llm:
        delegation = hold and PersonaPlexLLMService.Delegation(
            llm.worker([menu, drinks]), hold=hold, filler=("One moment.",), filler_after=1.5
        )
        agent = PersonaPlexLLMService(engine, settings=settings, delegation=delegation)
        stt = _whisper() if whisper else [Tape(turns)]
        before = [ParallelPipeline(stt, [IdentityFilter()])]
        async with DelegatedCall(agent, LLMContext(), before) as call:
            began = time.monotonic()
            call.microphone = pcm
            await asyncio.sleep(len(pcm) / SAMPLE_RATE)
            words = [
                (at - began, frame.text)
                for at, frame in call.ear.frames
                if isinstance(frame, TTSTextFrame)
            ]
        ends = [*(turn.start for turn in turns[1:]), float("inf")]
        for turn, end in zip(turns, ends, strict=True):
            turn.words = [(at, word) for at, word in words if turn.end <= at < end]
            turn.requests = [at - began for at in llm.times if turn.end <= at - began < end]
            written = [at - began for at in llm.written if turn.end <= at - began < end]
            turn.written = written[-1] if written else None
            turn.calls = called.count(turn.intent)
    return turns


def _whisper() -> list[Any]:
    from pipecat.audio.vad.silero import SileroVADAnalyzer
    from pipecat.processors.audio.vad_processor import VADProcessor

    from tests.helpers.real import whisper_service

    return [VADProcessor(vad_analyzer=SileroVADAnalyzer()), whisper_service()]


def judge(turns: list[Turn]) -> dict[str, object]:
    """Counts and times of turns in calls with a backend."""
    tool = [turn for turn in turns if turn.intent in ANSWERS]
    chat = [turn for turn in turns if turn.intent not in ANSWERS]
    right = [turn for turn in tool if ANSWERS[turn.intent] in turn.said]
    honest = ("One moment.", *ANSWERS.values())
    invented = [t for t in tool if t.said and not any(t.said.startswith(h[:12]) for h in honest)]
    out = [t.requests[0] - t.end - TRANSCRIPT_SECONDS - TURN_SECONDS for t in turns if t.requests]
    back = [
        first - t.written
        for t in right
        if t.written is not None and (first := _first(t, ANSWERS[t.intent])) is not None
    ]
    return {
        "tool turns": len(tool),
        "tool called once": sum(turn.calls == 1 for turn in tool),
        "tool's answer spoken": len(right),
        "invented answer first": len(invented),
        "other turns": len(chat),
        "unanswered turns": sum(not turn.said for turn in turns),
        "s to the tool's answer": _times(
            [f - t.end for t in right if (f := _first(t, ANSWERS[t.intent])) is not None]
        ),
        "s to the first word": _times([t.words[0][0] - t.end for t in tool if t.words]),
        "s to the model's own answer": _times([t.words[0][0] - t.end for t in chat if t.words]),
        "own share: s from transcript to request": _times(out),
        "own share: s from answer to first word": _times(back),
    }


def _first(turn: Turn, answer: str) -> float | None:
    """When the answer begins: its first word, where the words that follow are the answer's."""
    words = answer.split()
    said = [word.strip() for _, word in turn.words]
    for index in range(len(said)):
        if said[index : index + 3] == words[:3]:
            return turn.words[index][0]
    return None


def _times(seconds: list[float]) -> dict[str, float] | None:
    if len(seconds) < 2:
        return {"median": round(seconds[0], 2)} if seconds else None
    return {
        "median": round(median(seconds), 2),
        "p95": round(quantiles(seconds, n=20, method="inclusive")[-1], 2),
    }


HOLDS = {
    "until_decided": Hold.until_decided(1.0),
    "when": Hold.when(),
    "never": Hold.never(),
    "no backend": None,
}


def main(
    calls: Annotated[int, typer.Option(help="Calls of each kind.", min=1)] = 40,
    at_once: Annotated[int, typer.Option(help="Calls at a time.", min=1)] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(help="until_decided, when, never or 'no backend'; all if not given."),
    ] = None,
    whisper: Annotated[bool, typer.Option(help="Whisper in place of the known words.")] = False,
) -> None:
    """Measure delegation with nano in real time; prints a line of JSON for each kind of call."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    config = EngineConfig(device="cpu", max_sessions=at_once)
    with Engine.load("nano", config) as engine:
        for kind in only or HOLDS:
            before = engine.stats()
            turns = asyncio.run(_run_calls(engine, calls, at_once, HOLDS[kind], whisper))
            after = engine.stats()
            frames = after.frames - before.frames
            late = after.late_frames - before.late_frames
            result: dict[str, object] = {"calls": calls, "at once": at_once, **judge(turns)}
            result |= {
                "frames": frames,
                "late frames": late,
                "late %": round(100 * late / frames, 2),
            }
            print(json.dumps({kind: result}), flush=True)


async def _run_calls(
    engine: Engine, calls: int, at_once: int, hold: Hold | None, whisper: bool
) -> list[Turn]:
    free = asyncio.Semaphore(at_once)

    async def one(seed: int) -> list[Turn]:
        async with free:
            return await run_call(engine, seed, hold, whisper)

    done = await asyncio.gather(*(one(seed) for seed in range(calls)))
    return [turn for turns in done for turn in turns]


if __name__ == "__main__":
    typer.run(main)
