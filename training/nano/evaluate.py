"""Runs many calls through the engine with a checkpoint and measures the agent's behaviour."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pystoi import stoi

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.engine.engine import Engine
from training.nano import script
from training.nano.agent_speech import reference
from training.nano.answers import agent_text_between, is_of_another_role, is_right, names_in
from training.nano.calls import (
    CallerTurn,
    TestCall,
    interrupting_calls,
    prompt_calls,
    question_calls,
    story_calls,
)
from training.nano.espeak import Pcm
from training.nano.names import HELD_OUT_NAMES

SEEDS = (0, 1, 2)
_CONCURRENT_CALLS = 8
_HOP = SAMPLE_RATE // 50
# RMS threshold of 20 ms between the codec's silence and an agent's speech.
_AUDIBLE_RMS = 0.008
# Hops of continuous sound that count as speech.
_ONSET_HOPS = 4
_LATEST_ANSWER = 2.0
_SILENCE_SECONDS = 300
_ALIGN_SECONDS = 0.12
# Facts that are counted apart from prices, hours and streets.
_MENU = ("employer", "dish", "in_classic", "in_spicy")


@dataclass
class CallMetrics:
    """Results of all calls of one seed, one value for each case."""

    intent: list[bool] = field(default_factory=list)
    name: list[bool] = field(default_factory=list)
    unseen_name: list[bool] = field(default_factory=list)
    fact: list[bool] = field(default_factory=list)
    declined: list[bool] = field(default_factory=list)
    menu: list[bool] = field(default_factory=list)
    other_role: list[bool] = field(default_factory=list)
    answered: list[bool] = field(default_factory=list)
    delay: list[float] = field(default_factory=list)
    pause_broken: list[bool] = field(default_factory=list)
    yielded: list[bool] = field(default_factory=list)
    yield_delay: list[float] = field(default_factory=list)
    stoi: list[float] = field(default_factory=list)
    backchannelled: list[bool] = field(default_factory=list)
    spurious_onsets: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Shares, medians and means of the results."""
        result = {
            "turns": float(len(self.answered)),
            "intent_right": _mean(self.intent),
            "name_right": _mean(self.name),
            "unseen_name_right": _mean(self.unseen_name),
            "facts": float(len(self.fact)),
            "fact_right": _mean(self.fact),
            "unknown_declined": _mean(self.declined),
            "menu_right": _mean(self.menu),
            "other_role": _mean(self.other_role),
            "answered": _mean(self.answered),
            "delay_median_s": _median(self.delay),
            "pauses": float(len(self.pause_broken)),
            "pause_broken": _mean(self.pause_broken),
            "barge_ins": float(len(self.yielded)),
            "quiet_within_500ms": _mean(self.yielded),
            "yield_median_s": _median(self.yield_delay),
            "speech_stoi": _mean(self.stoi),
            "stories": float(len(self.backchannelled)),
            "backchannelled": _mean(self.backchannelled),
        }
        if self.spurious_onsets:
            result["onsets_in_silence_max"] = float(max(self.spurious_onsets))
        return result


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else float("nan")


def audible(pcm: Pcm) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each 20 ms of audio is speech; short clicks are not."""
    hops = pcm[: len(pcm) // _HOP * _HOP].reshape(-1, _HOP)
    loud = np.sqrt(np.mean(np.square(hops), axis=1)) > _AUDIBLE_RMS
    runs = np.convolve(loud, np.ones(_ONSET_HOPS), "full")
    # A hop is speech if a run of ``_ONSET_HOPS`` loud hops contains it.
    full = runs[_ONSET_HOPS - 1 :] == _ONSET_HOPS
    covered = np.convolve(full, np.ones(_ONSET_HOPS), "full")[: len(loud)] > 0
    return covered


def onsets(pcm: Pcm, quiet_seconds: float = 0.5) -> list[float]:
    """Times in seconds at which speech starts after ``quiet_seconds`` of silence."""
    times: list[float] = []
    last = -math.inf
    for index in np.flatnonzero(audible(pcm)):
        now = float(index) * _HOP / SAMPLE_RATE
        if now - last > quiet_seconds:
            times.append(now)
        last = now
    return times


def _judge_turn(
    engine: Engine,
    call: TestCall,
    talk: Conversation,
    turn: CallerTurn,
    until: float,
    into: CallMetrics,
) -> None:
    start = turn.end - 0.2
    begun = [time for time in onsets(talk.pcm) if start <= time < turn.end + _LATEST_ANSWER]
    into.answered.append(bool(begun))
    if begun:
        into.delay.append(begun[0] - turn.end)
    text = agent_text_between(engine, talk, start, until)
    expected = call.character.answer(turn.intent)
    right = is_right(call.character, turn.intent, text)
    into.intent.append(right)
    if (name := call.character.name) and name in expected:
        (into.unseen_name if name in HELD_OUT_NAMES else into.name).append(name in names_in(text))
    if fact := script.fact_of(script.ROLES[call.character.role].answers.get(turn.intent, "")):
        if fact not in call.character.facts:
            into.declined.append(right)
        else:
            (into.menu if fact in _MENU else into.fact).append(right)
    into.other_role.append(is_of_another_role(call.character.role, text))
    if right and begun and text == expected:
        spoken = reference(call.voice, expected).pcm
        into.stoi.append(speech_stoi(talk.pcm, begun[0], spoken))


def speech_stoi(pcm: Pcm, onset: float, reference_pcm: Pcm) -> float:
    """STOI of generated speech against the synthesiser's, at the best of several shifts."""
    scores = []
    for shift in np.arange(-_ALIGN_SECONDS, _ALIGN_SECONDS, 0.02):
        start = max(0, int((onset + shift) * SAMPLE_RATE))
        part = pcm[start : start + len(reference_pcm)]
        if len(part) == len(reference_pcm):
            scores.append(stoi(reference_pcm, part, SAMPLE_RATE))
    return float(max(scores, default=0.0))


def _judge_pauses(call: TestCall, talk: Conversation, into: CallMetrics) -> None:
    speaking = audible(talk.pcm)
    for turn in call.turns:
        if turn.pause is not None:
            first, last = (int(time * SAMPLE_RATE / _HOP) for time in (turn.pause[0], turn.end))
            into.pause_broken.append(bool(speaking[first:last].any()))


def _judge_interruption(call: TestCall, talk: Conversation, into: CallMetrics) -> None:
    speaking = audible(talk.pcm)
    for turn in call.turns:
        first = int(turn.start * SAMPLE_RATE / _HOP)
        if not turn.interrupts or not speaking[max(0, first - 10) : first + 5].any():
            continue  # the agent was not speaking
        quiet = np.flatnonzero(~speaking[first:])
        # The agent has stopped at the first 0.2 s of silence; a shorter gap may be inside a word.
        runs = [hop for hop in quiet if not speaking[first + hop : first + hop + 10].any()]
        delay = runs[0] * _HOP / SAMPLE_RATE if runs else float("inf")
        into.yield_delay.append(delay)
        into.yielded.append(delay <= 0.5)


def _judge_stories(engine: Engine, call: TestCall, talk: Conversation, into: CallMetrics) -> None:
    for turn in call.turns:
        assert turn.story_end is not None
        text = agent_text_between(engine, talk, turn.story_end, turn.end)
        into.backchannelled.append(text == script.BACKCHANNEL)


def _run_calls(
    engine: Engine, calls: Sequence[TestCall], sampling: SamplingParams
) -> list[Conversation]:
    def run(call: TestCall) -> Conversation:
        return engine.converse(Persona(call.voice, call.character.prompt), call.pcm, sampling)

    with ThreadPoolExecutor(_CONCURRENT_CALLS) as pool:
        return list(pool.map(run, calls))


def evaluate_seed(engine: Engine, seed: int, calls: int, silence: bool) -> CallMetrics:
    """Run all calls of one seed on a started engine."""
    metrics = CallMetrics()
    sampling = SamplingParams(seed=seed)
    batch = question_calls(calls, seed) + prompt_calls(calls, seed)
    for call, talk in zip(batch, _run_calls(engine, batch, sampling), strict=True):
        untils = [turn.start for turn in call.turns[1:]] + [len(call.pcm) / SAMPLE_RATE]
        for turn, until in zip(call.turns, untils, strict=True):
            _judge_turn(engine, call, talk, turn, until, metrics)
    batch = question_calls(max(2, calls // 2), seed, pauses=True)
    for call, talk in zip(batch, _run_calls(engine, batch, sampling), strict=True):
        _judge_pauses(call, talk, metrics)
    batch = interrupting_calls(calls, seed)
    for call, talk in zip(batch, _run_calls(engine, batch, sampling), strict=True):
        _judge_interruption(call, talk, metrics)
    batch = story_calls(max(2, calls // 4), seed)
    for call, talk in zip(batch, _run_calls(engine, batch, sampling), strict=True):
        _judge_stories(engine, call, talk, metrics)
    if silence:
        silent_caller = np.zeros(_SILENCE_SECONDS * SAMPLE_RATE, np.float32)
        character = script.sample_character(np.random.default_rng(seed))
        talk = engine.converse(Persona("NATF2", character.prompt), silent_caller, sampling)
        metrics.spurious_onsets.append(len(onsets(talk.pcm)))
    return metrics


def speed(engine: Engine) -> dict[str, float]:
    """Speed of a single call: real-time factor, and seconds until its first frame."""
    call = question_calls(1, 99)[0]
    persona = Persona(call.voice, call.character.prompt + " Be brief.")
    arrived: list[float] = []
    started = time.perf_counter()
    engine.converse(persona, call.pcm, on_frame=lambda _: arrived.append(time.perf_counter()))
    seconds = len(call.pcm) / SAMPLE_RATE
    return {
        "real_time_factor": (arrived[-1] - arrived[0]) / seconds,
        "first_frame_s": arrived[0] - started,
    }


def evaluate(
    model: Path, calls: int, silence: bool = True, seeds: Sequence[int] = SEEDS
) -> dict[str, dict[str, float]]:
    """Metrics of each seed, and the speed."""
    config = EngineConfig(device="cpu", max_sessions=_CONCURRENT_CALLS)
    with Engine.load(model, config) as engine:
        result = {
            f"seed {seed}": evaluate_seed(engine, seed, calls, silence).summary() for seed in seeds
        }
        result["speed"] = speed(engine)
    return result
