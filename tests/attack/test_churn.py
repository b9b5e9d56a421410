"""Memory while sessions come and go: after a warm-up it must not grow.

    pytest tests/attack/test_churn.py -m measurement -s

opens and closes ``PERSONAPLEX_CHURN`` sessions (20,000 by default) at an engine, at a server and
through a ``RemoteEngine``, each in a process of its own, and prints the memory after each tenth.
After the warm-up, a fifth of the sessions, it must not grow. The other test does the same with a
few sessions, so that the programs work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from loguru import logger

from pipecat_personaplex.config import Persona
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.errors import EngineError, PersonaPlexError
from pipecat_personaplex.interface import EngineLike, SessionFrame
from tests.attack.victim import memory_mib
from tests.golden_data import CHECKPOINT
from tests.helpers.servers import ServeProcess

_WAIT = 900.0  # a machine with other work may stop the processes for minutes
_MEASURED = 10  # times
_WARM_UP = 2  # of these
_SILENCE = np.zeros(FRAME_SAMPLES, np.float32)


def use_session(engine: EngineLike) -> bool:
    """Open a session, receive a frame, close it; return whether there was a frame."""
    frames: list[int] = []
    answered, ended = threading.Event(), threading.Event()

    def on_frame(frame: SessionFrame) -> None:
        frames.append(frame.index)
        answered.set()

    def on_end(error: PersonaPlexError | None) -> None:
        answered.set()
        ended.set()

    try:
        session = engine.open_session(Persona("NATM1"), on_frame=on_frame, on_end=on_end)
        session.push(_SILENCE)
    except EngineError:
        return False
    assert answered.wait(_WAIT)
    session.close()
    assert ended.wait(_WAIT)
    return bool(frames)


def churn(engine: EngineLike, sessions: int, server: int) -> dict[str, list[float]]:
    """Open, use and close sessions.

    Args:
        engine: Where they are opened.
        sessions: How many.
        server: Process id of the server; 0 for none.

    Returns:
        The memory of this process and of the server in MiB, after each tenth of the sessions.
    """
    memory: dict[str, list[float]] = {"own": [], "server": []}
    ends = {sessions * tenth // _MEASURED for tenth in range(1, _MEASURED + 1)}
    for count in range(1, sessions + 1):
        while not use_session(engine):  # a connection broke, as on a machine that was stopped
            time.sleep(1.0)
        if count in ends:
            memory["own"].append(memory_mib(os.getpid()))
            memory["server"].append(memory_mib(server) if server else 0.0)
    return memory


def main(kind: str, sessions: int, url: str, server: int) -> None:
    logger.disable("pipecat_personaplex")  # a few lines for each session
    if kind == "engine":
        from pipecat_personaplex import Engine, EngineConfig

        config = EngineConfig(device="cpu", dtype="float32", max_sessions=4)
        with Engine.load(CHECKPOINT, config) as engine:
            memory = churn(engine, sessions, 0)
    else:
        from pipecat_personaplex.remote import RemoteEngine

        with RemoteEngine(url) as remote:
            memory = churn(remote, sessions, server)
    print(json.dumps(memory))


class PatientServer(ServeProcess):
    start_seconds = _WAIT


@pytest.fixture(scope="module")
def server() -> Iterator[ServeProcess]:
    with PatientServer("--max-sessions", 4, "--address-rate", 0) as running:
        yield running


def run(kind: str, sessions: int, server: ServeProcess) -> dict[str, list[float]]:
    module = ("-m", "tests.attack.test_churn")
    done = subprocess.run(
        [sys.executable, *module, kind, str(sessions), server.ws_url, str(server.process.pid)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    memory: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return memory


@pytest.mark.serial
@pytest.mark.parametrize("kind", ["engine", "remote"])
def test_the_programs_work(server: ServeProcess, kind: str) -> None:
    memory = run(kind, 20, server)
    assert len(memory["own"]) == _MEASURED and min(memory["own"]) > 10


@pytest.mark.measurement
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["engine", "remote"])
def test_memory_does_not_grow(server: ServeProcess, kind: str) -> None:
    sessions = int(os.environ.get("PERSONAPLEX_CHURN", "20000"))
    memory = run(kind, sessions, server)
    for process, measured in memory.items():
        print(f"\n{kind}, {process}: {' '.join(f'{each:.1f}' for each in measured)} MiB")
    for measured in memory.values():
        assert measured[-1] <= 1.01 * measured[_WARM_UP - 1] + 0.1


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
