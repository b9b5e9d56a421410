"""What is over keeps no memory: sessions, and the keys and values of a prompt that failed."""

from __future__ import annotations

import gc
import queue
import weakref

import pytest

from pipecat_personaplex import Engine, Persona
from pipecat_personaplex.engine.prefill import Prefill
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from tests.helpers.calls import WAIT, Call, says


def test_ended_sessions_are_garbage_collected(engine: Engine) -> None:
    sessions = [weakref.ref(Call(engine).session) for _ in range(4)]
    for ref in sessions:
        session = ref()
        assert session is not None
        session.close()
        assert session.wait_ended(WAIT)
    del session
    for _ in range(20):
        says(engine)
    assert engine.stats().sessions == 0
    gc.collect()
    assert [ref() for ref in sessions] == [None] * 4


def test_an_error_keeps_no_keys_and_values(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server keeps a failed session for its client, and an application as long as it likes."""
    caches = []

    def fail(self: Prefill, *_: object) -> None:
        caches.append(weakref.ref(self._cache))
        raise RuntimeError("out of memory")

    call = Call(engine, Persona("NATF2", "An unusual persona."))
    assert call.session.wait_ready(WAIT)
    monkeypatch.setattr(Prefill, "_compute", fail)
    failed = Call(engine, Persona("NATF2", "Another persona."))
    assert isinstance(failed.ends.get(timeout=WAIT), SessionFailed)
    done: queue.Queue[PersonaPlexError | None] = queue.Queue()
    call.session.update_prompt(Persona("NATF2", "A third persona."), on_done=done.put)
    errors = [failed.session.error, done.get(timeout=WAIT)]
    assert all("out of memory" in str(error) for error in errors)
    call.hang_up()
    gc.collect()
    assert len(caches) == 2 and not any(cache() for cache in caches)
