"""A process that forks while an engine runs, or that exits without stopping it."""

from __future__ import annotations

import numpy as np
import pytest

from pipecat_personaplex import Engine
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import EngineFailed, SessionFailed
from tests.golden_data import CHECKPOINT, FRIEND
from tests.helpers.calls import SILENCE, Call, says
from tests.helpers.processes import EXIT_IN_A_CALL, in_child, run_program

_EXIT = (
    """
import sys
from pipecat_personaplex import Engine, EngineConfig

PAUSE = 0.001
engine = Engine.load(sys.argv[1], EngineConfig(device="cpu", dtype="float32", max_sessions=2))
"""
    + EXIT_IN_A_CALL
)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.timeout(60)
def test_a_fork_fails_the_engine_in_the_child_alone(engine: Engine) -> None:
    call = Call(engine)
    assert call.session.wait_ready(30)

    def child() -> None:
        assert not engine.healthy
        with pytest.raises(EngineFailed, match="forked from the one in which the engine runs"):
            engine.open_session(FRIEND, on_frame=print)
        with pytest.raises(EngineFailed, match="spawn"):
            engine.converse(FRIEND, np.zeros(FRAME_SAMPLES, np.float32))
        with pytest.raises(EngineFailed):
            engine.start()
        with pytest.raises(SessionFailed, match="forked"):
            call.session.push(SILENCE)
        with pytest.raises(SessionFailed, match="forked"):
            call.session.wait_ready()
        assert call.session.wait_ended()
        call.session.close()
        assert engine.stats().sessions == 0
        engine.stop()

    # Many forks, so that some of them copy locks in their locked state.
    for _ in range(10):
        call.session.push(np.zeros(2 * FRAME_SAMPLES, np.float32))
        assert in_child(child) == ""
    assert engine.healthy
    assert call.answer().index >= 0
    call.hang_up()
    assert says(engine)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.timeout(60)
def test_an_engine_that_does_not_run_starts_in_the_child(loaded_engine: Engine) -> None:
    """As in servers that load a model once and fork their workers."""

    def child() -> None:
        with loaded_engine as engine:
            assert engine.healthy
            assert Call(engine).session.wait_ready(30)

    assert in_child(child) == ""


def test_exit_without_stop_ends_the_sessions_and_the_process_cleanly() -> None:
    assert run_program(_EXIT, str(CHECKPOINT)) == "end the engine was stopped\n"


def test_exit_does_not_wait_for_a_callback_that_never_returns() -> None:
    code = _EXIT.replace("heard.set()", "(heard.set(), time.sleep(1000))")
    run_program(code, str(CHECKPOINT))
