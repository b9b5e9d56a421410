"""Measures delegation: spoken callers, nano in real time, Pipecat's worker, an LLM behind HTTP.

Nano runs in a server process of its own: in one process, the pipelines of several calls and the
model wait for each other.

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
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import numpy as np
import typer
from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    SpeechOutputAudioRawFrame,
    TranscriptionFrame,
    TTSTextFrame,
)
from pipecat.pipeline.parallel_pipeline import ParallelPipeline
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.filters.identity_filter import IdentityFilter
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.workers.llm.backend_llm_worker import BackendOutput

from pipecat_personaplex import Hold, PersonaPlexLLMService
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.interface import EngineLike, Speech
from pipecat_personaplex.remote import RemoteEngine
from tests.helpers.delegation import DelegatedCall
from tests.helpers.llm import Rule, StubLLM
from tests.helpers.servers import ServeProcess, eventually
from training.nano import script, wordings
from training.nano.espeak import speaker  # noqa: F401  fails at once if espeak is missing
from training.nano.turns import speak_turn
from training.nano.voices import AGENT_VOICES, held_out_voices

TRANSCRIPT_SECONDS = 0.3
TURN_SECONDS = 0.1  # of the turn strategy; see tests/helpers/delegation.py
GAP_SECONDS = 8.0  # after a turn, for the answer; a second more passes before the next turn
LAST_SECONDS = 3.0  # at the end of the call
AUDIBLE_DBFS = -45.0
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
        outputs: When the service got a text to speak.
        begun: When the agent began a text of the delegation.
        sounded: When the agent was audible after that.
        cut: Texts that were not spoken to their end, and how many words were.
        calls: Calls of the right tool.
        expected: What the model itself has learnt to answer.
    """

    intent: str
    text: str
    start: float
    end: float
    words: list[tuple[float, str]] = field(default_factory=list)
    requests: list[float] = field(default_factory=list)
    written: float | None = None
    outputs: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    sounded: list[float] = field(default_factory=list)
    cut: list[tuple[str, int]] = field(default_factory=list)
    calls: int = 0
    expected: str = ""

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
    pieces.append(np.zeros(round(LAST_SECONDS * SAMPLE_RATE), np.float32))
    pcm = np.clip(np.concatenate(pieces), -1, 1)
    return turns, (pcm * 32_767).astype(np.int16)


async def run_call(engine: EngineLike, seed: int, hold: Hold | None, whisper: bool) -> list[Turn]:
    """Run a call with a backend, or without one if ``hold`` is None."""
    random = np.random.default_rng([92, seed])
    turns, pcm = caller(seed)
    character = script.sample_character(random, "restaurant")
    settings = PersonaPlexLLMService.Settings(
        voice=list(AGENT_VOICES)[seed % 2], system_instruction=character.prompt, seed=seed
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

    outputs: list[float] = []
    begun: list[float] = []
    cut: list[tuple[float, str, int]] = []

    async def note_time(output: BackendOutput) -> BackendOutput:
        if output.prefers_spoken:
            outputs.append(time.monotonic())
        return output

    async with StubLLM(rules, delay=float(random.uniform(0.2, 3.0)) / 2) as llm:
        worker = llm.worker([menu, drinks], transform_output=note_time)
        delegation = hold and PersonaPlexLLMService.Delegation(
            worker, hold=hold, filler=("One moment.",), filler_after=1.5
        )
        agent = PersonaPlexLLMService(engine, settings=settings, delegation=delegation)

        @agent.event_handler("on_speech_started")
        async def on_speech_started(service: object, speech: Speech) -> None:
            begun.append(time.monotonic())

        @agent.event_handler("on_speech_cut")
        async def on_speech_cut(service: object, text: str, spoken: int) -> None:
            cut.append((time.monotonic(), text, spoken))

        before = [_whisper() if whisper else ParallelPipeline([Tape(turns)], [IdentityFilter()])]
        async with DelegatedCall(agent, LLMContext(), before) as call:
            began = time.monotonic()
            call.microphone = pcm
            await asyncio.sleep(len(pcm) / SAMPLE_RATE)
            words = [
                (at - began, frame.text)
                for at, frame in call.ear.frames
                if isinstance(frame, TTSTextFrame)
            ]
            audible = [
                at
                for at, frame in call.ear.frames
                if isinstance(frame, SpeechOutputAudioRawFrame)
                and level(frame.audio) > AUDIBLE_DBFS
            ]
            sounded = [min((at for at in audible if at >= start), default=inf) for start in begun]
        ends = [*(turn.start for turn in turns[1:]), inf]

        def within(turn: Turn, end: float, times: list[float]) -> list[float]:
            return [at - began for at in times if turn.end <= at - began < end]

        for turn, end in zip(turns, ends, strict=True):
            turn.words = [(at, word) for at, word in words if turn.end <= at < end]
            turn.requests = within(turn, end, llm.times)
            turn.written = max(within(turn, end, llm.written), default=None)
            turn.outputs, turn.begun = within(turn, end, outputs), within(turn, end, begun)
            turn.sounded = within(turn, end, sounded)
            turn.cut = [(text, n) for at, text, n in cut if turn.end <= at - began < end]
            turn.calls = called.count(turn.intent)
            turn.expected = character.answer(turn.intent)
    return turns


def _whisper() -> FrameProcessor:
    from tests.helpers.real import whisper

    return whisper()


def judge(turns: list[Turn]) -> dict[str, object]:
    """Counts and times of turns in calls with a backend."""
    tool = [turn for turn in turns if turn.intent in ANSWERS]
    chat = [turn for turn in turns if turn.intent not in ANSWERS]
    right = [turn for turn in tool if ANSWERS[turn.intent] in turn.said]
    honest = ("One moment.", *ANSWERS.values())
    invented = [t for t in tool if t.said and not any(t.said.startswith(h[:12]) for h in honest)]
    out = [t.requests[0] - t.end - TRANSCRIPT_SECONDS - TURN_SECONDS for t in turns if t.requests]
    # The answer is the last text that begins; a filler may come before it.
    spoken = [t for t in right if t.outputs and t.begun and t.sounded]
    own = [
        t.sounded[-1] - t.outputs[-1] + t.requests[0] - t.end - TRANSCRIPT_SECONDS - TURN_SECONDS
        for t in spoken
    ]
    return {
        "tool turns": len(tool),
        "tool called once": sum(turn.calls == 1 for turn in tool),
        "tool's answer spoken": len(right),
        "invented answer first": len(invented),
        "other turns": len(chat),
        "right answers to other turns": sum(_plain(t.expected) in _plain(t.said) for t in chat),
        "unanswered turns": sum(not turn.said for turn in turns),
        "s to the tool's answer": _times([t.sounded[-1] - t.end for t in spoken]),
        "s to the first word": _times([t.words[0][0] - t.end for t in tool if t.words]),
        "s to the model's own answer": _times([t.words[0][0] - t.end for t in chat if t.words]),
        "s of our own share": _times(own),
        "of it from the transcript to the request": _times(out),
        "of it until the answer begins": _times([t.begun[-1] - t.outputs[-1] for t in spoken]),
        "of it until it sounds": _times([t.sounded[-1] - t.begun[-1] for t in spoken]),
        "s of our own share, without a filler before": _times(
            [seconds for seconds, t in zip(own, spoken, strict=True) if len(t.begun) == 1]
        ),
        "s from the LLM's last byte to the answer": _times(
            [t.outputs[-1] - t.written for t in spoken if t.written is not None]
        ),
    }


def _plain(text: str) -> str:
    return re.sub(r"[^a-z ]", "", text.lower())


def level(audio: bytes) -> float:
    """The RMS level of 16-bit audio in dBFS."""
    pcm = np.frombuffer(audio, np.int16).astype(np.float64) / 32_768
    return float(10 * np.log10(np.mean(pcm**2) + 1e-12))


def _times(seconds: list[float]) -> dict[str, float] | None:
    if len(seconds) < 2:
        return {"median": round(seconds[0], 2)} if seconds else None
    return {
        "median": round(median(seconds), 2),
        "p95": round(quantiles(seconds, n=20, method="inclusive")[-1], 2),
    }


HOLDS = {
    "until_decided": Hold.until_decided(),
    "seconds alone": Hold.until_decided(1.0, lambda text: False),
    "when": Hold.when(),
    "never": Hold.never(),
    "no backend": None,
}


def main(
    calls: Annotated[int, typer.Option(help="Calls of each kind.", min=1)] = 40,
    at_once: Annotated[int, typer.Option(help="Calls at a time.", min=1)] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="until_decided (the default hold), 'seconds alone' (the same without a router), "
            "when, never or 'no backend'; all if not given."
        ),
    ] = None,
    first: Annotated[int, typer.Option(help="Number of the first call.", min=0)] = 0,
    whisper: Annotated[bool, typer.Option(help="Whisper in place of the known words.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A file for the record of each turn, as JSON lines.")
    ] = None,
) -> None:
    """Measure delegation with nano in real time; prints a line of JSON for each kind of call."""
    logger.remove()
    logger.add(sys.stderr, level="ERROR")
    with (
        ServeProcess("--model", "nano", "--max-sessions", at_once) as server,
        RemoteEngine([server.ws_url]) as engine,
    ):
        eventually(lambda: engine.healthy)
        for kind in only or HOLDS:
            before = engine.stats()
            numbers = range(first, first + calls)
            turns = asyncio.run(_run_calls(engine, numbers, at_once, HOLDS[kind], whisper))
            after = engine.stats()
            frames = after.frames - before.frames
            late = after.late_frames - before.late_frames
            result: dict[str, object] = {"calls": calls, "at once": at_once, **judge(turns)}
            result |= {"frames": frames, "late %": round(100 * late / frames, 2)}
            print(json.dumps({kind: result}), flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.writelines(json.dumps({"kind": kind, **asdict(t)}) + "\n" for t in turns)


async def _run_calls(
    engine: EngineLike, calls: Sequence[int], at_once: int, hold: Hold | None, whisper: bool
) -> list[Turn]:
    free = asyncio.Semaphore(at_once)

    async def one(seed: int) -> list[Turn]:
        async with free:
            return await run_call(engine, seed, hold, whisper)

    done = await asyncio.gather(*(one(seed) for seed in calls))
    return [turn for turns in done for turn in turns]


if __name__ == "__main__":
    typer.run(main)
