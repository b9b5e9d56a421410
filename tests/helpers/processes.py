"""Forked children of a test, and programs that it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable

# Ends while the caller talks. Stands behind the lines that make ``engine``.
EXIT_IN_A_CALL = """
import threading, time
import numpy as np
from pipecat_personaplex import Persona

engine.start()
heard = threading.Event()
session = engine.open_session(
    Persona("NATF2"), on_frame=lambda frame: heard.set(), on_end=lambda error: print("end", error)
)

def talk():
    while True:
        session.push(np.zeros(1920, np.float32))
        time.sleep(PAUSE)

threading.Thread(target=talk, daemon=True).start()
assert heard.wait(30)
"""


def in_child(work: Callable[[], object]) -> str:
    """Run a function in a forked child; return the traceback of what it raises."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:  # the child must not return into the test
        try:
            work()
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            return pipe.read()
    finally:  # also of a child that hangs, when the test's time is over
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def run_program(code: str, *arguments: str) -> str:
    """Run a Python program, which must exit with 0; return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout
