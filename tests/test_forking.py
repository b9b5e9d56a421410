"""Programs that tests start as forks behave like those in interpreters of their own."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.forking import offline_environment, run, start

PROGRAM = "tests.helpers.forked_program"
WAIT = 30


@pytest.mark.parametrize("fresh", [False, True])
def test_streams_arguments_variables_and_exit_code(fresh: bool) -> None:
    env = offline_environment() | {"GREETING": "hello"}
    done = run(PROGRAM, ["print", "a b"], env, timeout=WAIT, fresh=fresh)
    assert (done.returncode, done.stdout, done.stderr) == (3, "hello a b\n", "an error\n")


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_program(number: signal.Signals, fresh: bool) -> None:
    process = start(PROGRAM, ["wait"], stdout=subprocess.PIPE, fresh=fresh)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(WAIT) == -number
    process.kill()  # one that has ended


def test_what_libraries_read_at_their_import_needs_an_interpreter_of_its_own() -> None:
    process = start(PROGRAM, ["print"], offline_environment() | {"OMP_NUM_THREADS": "7"})
    assert isinstance(process, subprocess.Popen)
    assert process.wait(WAIT) == 3


def test_a_fork_runs_in_the_repository() -> None:
    done = run(PROGRAM, ["where"], timeout=WAIT)
    assert Path(done.stdout.strip()) == Path(__file__).parents[1]
