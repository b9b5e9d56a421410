"""How many questions the model understands: by caller's voice, and by microphone and line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.engine.converse_many import ConversationJob, converse_many
from pipecat_personaplex.engine.engine import Engine
from training.nano.answers import agent_text_between, is_right
from training.nano.calls import TestCall, voice_calls
from training.nano.judges import held_out_speakers, judges
from training.nano.microphone import Microphone
from training.nano.noise import brown, gusts

_SESSIONS = 24
# A good microphone in a quiet room.
_GOOD = Microphone(noise=brown, snr=40, peak=-9)
CONDITIONS = {
    "good microphone": _GOOD,
    "noise at 10 dB": replace(_GOOD, noise=gusts, snr=10),
    "telephone": replace(_GOOD, line="telephone"),
    "-34 dBFS": replace(_GOOD, peak=-34),
    "DC offset 0.01": replace(_GOOD, offset=0.01),
}


def hearing(
    model: Path, calls: int, seeds: Sequence[int], on_row: Callable[[dict[str, object]], object]
) -> None:
    """Ask questions in held-out wordings, four a call, and count the right answers.

    Args:
        model: Folder of the checkpoint.
        calls: Calls of each voice, condition and seed.
        seeds: Seeds of questions and sampling.
        on_row: Called with each result: ``voice`` or ``condition``, ``seed``, ``turns`` and the
            share of ``right`` answers. The conditions use one voice after the other.
    """
    voices = judges() | held_out_speakers()
    everybody = [person for persons in voices.values() for person in persons[:1]]
    config = EngineConfig(device="cpu", max_sessions=min(_SESSIONS, max(calls, len(everybody))))
    with Engine.load(model, config) as engine:
        for seed in seeds:
            for name, persons in voices.items():
                batch = voice_calls(persons, _GOOD, calls, seed)
                on_row({"voice": name, "seed": seed} | _right_answers(engine, batch, seed))
            for name, microphone in CONDITIONS.items():
                batch = voice_calls(everybody, microphone, max(calls, len(everybody)), seed)
                on_row({"condition": name, "seed": seed} | _right_answers(engine, batch, seed))


def _right_answers(engine: Engine, calls: Sequence[TestCall], seed: int) -> dict[str, object]:
    jobs = [
        ConversationJob(
            call, Persona(call.voice, call.character.prompt), call.pcm, SamplingParams(seed=seed)
        )
        for call in calls
    ]
    right: list[bool] = []
    for done in converse_many(engine, jobs, engine.config.max_queued_frames):
        if done.conversation is None:
            raise done.error or RuntimeError("a call has no conversation")
        call = done.job.label
        untils = [turn.start for turn in call.turns[1:]] + [len(call.pcm) / SAMPLE_RATE]
        for turn, until in zip(call.turns, untils, strict=True):
            text = agent_text_between(engine, done.conversation, turn.end - 0.2, until)
            right.append(is_right(call.character, turn.intent, text))
    return {"turns": len(right), "right": round(sum(right) / len(right), 3)}
