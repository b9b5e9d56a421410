"""Callbacks of a remote engine that never return, forks of its process, and exits without stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import EngineStopped, SessionFailed
from pipecat_personaplex.remote import RemoteEngine
from tests.helpers.processes import EXIT_IN_A_CALL, in_child, run_program
from tests.helpers.servers import RunningServer, ServedFakeEngine
from tests.remote.helpers import FRIEND, WAIT, Caller, log_lines, tone, until

_EXIT = (
    """
import sys
from pipecat_personaplex.remote import RemoteEngine

PAUSE = 0.005
engine = RemoteEngine(sys.argv[1])
"""
    + EXIT_IN_A_CALL
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(ServedFakeEngine()) as running:
        yield running


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_a_callback_that_never_returns_ends_its_session_and_stop_returns(
    server: RunningServer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipecat_personaplex.remote.loop_thread.CHECK_SECONDS", 0.01)
    engine = RemoteEngine(server.ws_url)
    with engine, log_lines() as lines:
        neighbour = Caller(engine).ready()
        ended = threading.Event()
        stuck = engine.open_session(
            FRIEND, on_frame=lambda frame: gate.wait(WAIT), on_end=lambda error: ended.set()
        )
        assert stuck.wait_ready(WAIT)
        stuck.push(tone(0))
        until(lambda: stuck.closed)
        with pytest.raises(SessionFailed, match="on_frame callback has not returned for 5 s"):
            stuck.push(tone(1))
        assert not engine.healthy
        assert engine.stats().stuck_callbacks == 1
        gate.set()
        assert ended.wait(WAIT)  # reported as soon as the callback has returned
        assert engine.healthy
        neighbour.talk(0)
        gate.clear()
        stuck = engine.open_session(FRIEND, on_frame=lambda frame: gate.wait(WAIT))
        stuck.push(tone(0))
        until(lambda: stuck.closed)
    assert any("has not returned" in line for bound, line in lines if bound == stuck.id)
    with pytest.raises(EngineStopped, match="last run has not returned"):
        engine.start()
    gate.set()
    assert stuck.wait_ended(WAIT)
    with engine:
        Caller(engine).ready()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_after_a_fork_the_child_starts_anew_and_the_parent_goes_on(server: RunningServer) -> None:
    with RemoteEngine(server.ws_url) as engine:
        caller = Caller(engine).ready()

        def child() -> None:
            assert not engine.healthy
            with pytest.raises(EngineStopped, match="forked"):
                engine.open_session(Persona("NATF2"), on_frame=print)
            with pytest.raises(SessionFailed, match="forked"):
                caller.session.push(np.zeros(1920, np.float32))
            assert caller.session.wait_ended()
            with engine:
                Caller(engine).ready().talk(0)

        for _ in range(3):
            assert in_child(child) == ""
        caller.talk(0, 1)


def test_exit_without_stop_ends_the_sessions_and_the_process_cleanly(server: RunningServer) -> None:
    assert run_program(_EXIT, server.ws_url) == "end the engine was stopped\n"
    until(lambda: server.state.admission.sessions == 0)
