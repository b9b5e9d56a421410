"""Sessions of a real engine for tests."""

from __future__ import annotations

import queue
from typing import Any
from weakref import WeakSet

import numpy as np

from pipecat_personaplex import Engine, Persona, SamplingParams, Session, SessionFrame
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import PersonaPlexError
from tests.golden_data import FRIEND, conversation

SILENCE = np.zeros(FRAME_SAMPLES, dtype=np.float32)
WAIT = 30.0
_opened: WeakSet[Session] = WeakSet()


def tracked(session: Session) -> Session:
    """A session that ``end_calls`` closes if its test does not."""
    _opened.add(session)
    return session


class Call:
    """An open session; queues its frames and its end."""

    def __init__(self, engine: Engine, persona: Persona = FRIEND, **options: Any):
        self.frames: queue.Queue[SessionFrame] = queue.Queue()
        self.ends: queue.Queue[PersonaPlexError | None] = queue.Queue()
        options.setdefault("on_frame", self.frames.put)
        self.session = tracked(engine.open_session(persona, on_end=self.ends.put, **options))

    def answer(self, pcm: np.ndarray = SILENCE) -> SessionFrame:
        self.session.push(pcm)
        return self.frames.get(timeout=WAIT)

    def hang_up(self) -> None:
        self.session.close()
        assert self.session.wait_ended(WAIT)


def end_calls() -> None:
    """Hang up every call that a failed test has left open: the next test needs its slot."""
    while _opened:
        session = _opened.pop()
        session.close()
        session.wait_ended(WAIT)


def tokens(frame: SessionFrame) -> list[int]:
    """The tokens of a frame: text, 8 codes of the agent, 8 of the user."""
    return [frame.text_token, *frame.agent_codes, *frame.user_codes]


def says(engine: Engine) -> list[int]:
    """Text tokens of a short greedy conversation: a probe of the engine's state."""
    pcm = conversation("friend").user_pcm[: 6 * FRAME_SAMPLES]
    return [f.text_token for f in engine.converse(FRIEND, pcm, SamplingParams.greedy()).frames]
