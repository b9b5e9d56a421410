"""``Engine.converse_many``: many recorded calls in the engine's slots."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pipecat_personaplex import Engine, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.converse_many import ConversationJob, FinishedJob
from pipecat_personaplex.errors import (
    EngineFull,
    EngineStopped,
    InvalidAudio,
    PromptTooLong,
    VoiceNotFound,
)
from tests.golden_data import conversation

PERSONA = Persona("NATM1", "You enjoy having a good conversation.")


def jobs(count: int, frames: int = 6) -> Iterator[ConversationJob[int]]:
    caller = conversation("friend").user_pcm
    for index in range(count):
        first = index * FRAME_SAMPLES
        pcm = caller[first : first + frames * FRAME_SAMPLES - 7 * index]
        yield ConversationJob(index, PERSONA, pcm, SamplingParams(seed=index))


def tokens(finished: FinishedJob[int]) -> list[tuple[int, ...]]:
    assert finished.conversation is not None
    return [(f.text_token, *f.agent_codes.tolist()) for f in finished.conversation.frames]


def test_the_same_tokens_as_one_at_a_time(engine: Engine) -> None:
    together = {each.job.label: each for each in engine.converse_many(jobs(9))}
    assert sorted(together) == list(range(9))
    for job in jobs(9):
        alone = engine.converse(job.persona, job.pcm, job.sampling)
        finished = together[job.label]
        assert tokens(finished) == tokens(FinishedJob(job, alone))
        assert finished.conversation is not None
        assert len(finished.conversation.pcm) == len(job.pcm)


def test_fills_all_slots_and_reads_jobs_as_slots_become_free(engine: Engine) -> None:
    opened = read = 0
    most = 0

    def counted() -> Iterator[ConversationJob[int]]:
        nonlocal read
        for job in jobs(11):
            read += 1
            yield job

    for done, _ in enumerate(engine.converse_many(counted())):
        assert read <= done + 1 + engine.max_sessions  # no more calls in memory than slots
        most = max(most, engine.stats().sessions)
        opened += 1
    assert opened == 11
    assert most == engine.max_sessions - 1  # one has just ended


def test_counts_frames(engine: Engine) -> None:
    counted: list[int] = []
    list(engine.converse_many(jobs(5, frames=4), counted.append))
    assert sum(counted) == 20


def test_a_bad_job_leaves_the_others(engine: Engine) -> None:
    good = list(jobs(3))
    bad = [
        ConversationJob(10, Persona("NATX9"), good[0].pcm),
        ConversationJob(11, Persona("NATM1", "word " * 4000), good[0].pcm),
        ConversationJob(12, PERSONA, np.full(4000, np.nan, np.float32)),
    ]
    finished = {each.job.label: each for each in engine.converse_many([*bad, *good])}
    kinds = {label: type(each.error) for label, each in finished.items()}
    assert kinds == {
        10: VoiceNotFound,
        11: PromptTooLong,
        12: InvalidAudio,
        **dict.fromkeys((0, 1, 2), type(None)),
    }


def test_an_empty_recording(engine: Engine) -> None:
    [finished] = engine.converse_many([ConversationJob("x", PERSONA, np.zeros(0, np.float32))])
    assert finished.conversation is not None
    assert len(finished.conversation.pcm) == len(finished.conversation.frames) == 0


def test_no_jobs(engine: Engine) -> None:
    assert list(engine.converse_many([])) == []


def test_stopping_early_frees_the_slots(engine: Engine) -> None:
    running = engine.converse_many(jobs(8))
    next(running)
    del running
    gc.collect()
    assert engine.stats().sessions == 0
    assert len(list(engine.converse_many(jobs(4)))) == 4


def test_other_users_of_the_engine_keep_their_slots(engine: Engine) -> None:
    others = [
        engine.open_session(PERSONA, on_frame=lambda frame: None)
        for _ in range(engine.max_sessions - 1)
    ]
    assert len(list(engine.converse_many(jobs(5, frames=3)))) == 5
    last = engine.open_session(PERSONA, on_frame=lambda frame: None)
    with pytest.raises(EngineFull):
        list(engine.converse_many(jobs(1)))
    for session in [*others, last]:
        session.close()


def test_a_stopping_engine_ends_the_iteration(loaded_engine: Engine) -> None:
    with loaded_engine:
        running = loaded_engine.converse_many(jobs(40, frames=40))
        stopper = threading.Timer(0.2, loaded_engine.stop)
        stopper.start()
        with pytest.raises(EngineStopped):
            for _ in running:
                pass
        stopper.join()


def test_not_from_a_callback(engine: Engine) -> None:
    raised: list[BaseException] = []

    def nested(frame: object) -> None:
        try:
            engine.converse_many([])
        except EngineStopped as error:
            raised.append(error)

    session = engine.open_session(PERSONA, on_frame=nested)
    session.push(np.zeros(FRAME_SAMPLES, np.float32))
    for _ in range(200):
        if raised:
            break
        session.wait_ended(0.05)
    session.close()
    assert raised


def test_a_queue_of_one_frame_is_enough(loaded_engine: Engine) -> None:
    small = Engine(
        loaded_engine.checkpoint,
        loaded_engine._voices,
        EngineConfig(device="cpu", dtype="float32", max_sessions=2, max_queued_frames=1),
    )
    with small:
        assert len(list(small.converse_many(jobs(3, frames=4)))) == 3
