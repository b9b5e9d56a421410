"""Python programs that start in a fork of a process that has their libraries imported.

A new interpreter takes seconds of processor time to import PyTorch and Pipecat, a fork a few
milliseconds. Each test process has a fork server of its own, which starts at the first use::

    process = start("bots.assistant", ["--model", "nano"], env, stdout=subprocess.PIPE)
    process.terminate()
    process.wait(10)

Start a new interpreter where a test is about the imports, or about the start or end of a process.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
# What most programs need, and what starts no thread: a fork has none of its parent's threads, and
# waits for them for ever. A program's own module is imported in the fork.
_PRELOADED = (
    "aiortc",
    "bots.host",
    "pipecat.runner.run",
    "pipecat_personaplex.cli.commands",
    "pipecat_personaplex.engine.engine",
    "pipecat_personaplex.server.runner",
    "pipecat_personaplex.service.delegation.delegation",
    "pipecat_personaplex.talk.serving",
    "tests.helpers.engines",
    "torch",
)
# Variables that the libraries read when they are imported.
_READ_AT_IMPORT = re.compile(r"(CUDA|HF|LOGURU|MALLOC|OMP|TORCH|TRITON)_")
_FDS = 4  # a program's standard streams, and where its exit code is written
_INT = struct.Struct("i")


def offline_environment() -> dict[str, str]:
    """This process's variables; no program that tests start looks for weights on the Hub."""
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


class Forked:
    """A running program; its attributes and methods are those of ``subprocess.Popen``.

    ``stdout`` and ``stderr`` are text files, or None if they are not pipes.
    """

    def __init__(
        self, pid: int, ended: int, stdout: IO[str] | None, stderr: IO[str] | None, name: str
    ):
        self.pid = pid
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._ended = ended
        self._name = name
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._exit_code(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._exit_code(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._name, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _exit_code(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            select.select([self._ended], [], [], timeout)  # others may end the program meanwhile
        with self._lock:
            if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
                code = os.read(self._ended, _INT.size)
                os.close(self._ended)
                # Nothing is written if the fork server was killed.
                self.returncode = _INT.unpack(code)[0] if code else -signal.SIGKILL
            return self.returncode


class _ForkServer:
    """The client's side: one connection to a process that forks."""

    def __init__(self) -> None:
        self.environment = offline_environment()
        without_buffer = {"PYTHONUNBUFFERED"}  # each program has its own
        self._connection, theirs = socket.socketpair()
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.forking", str(theirs.fileno())],
                cwd=ROOT,
                env={k: v for k, v in self.environment.items() if k not in without_buffer},
                stdin=subprocess.DEVNULL,
                # Pipes, because a program's streams are these objects, and know if they may seek.
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self._stop)

    def serves(self, env: Mapping[str, str]) -> bool:
        """Whether its libraries were imported with the same variables as this program's."""
        names = {name for name in (*env, *self.environment) if _READ_AT_IMPORT.match(name)}
        return all(env.get(name) == self.environment.get(name) for name in names)

    def fork(self, request: dict[str, Any], fds: Sequence[int]) -> int:
        """Start a program; returns its process id."""
        body = json.dumps(request).encode()
        answer = b""
        with self._lock, suppress(OSError):  # the server has ended
            socket.send_fds(self._connection, [_INT.pack(len(body))], fds)
            self._connection.sendall(body)
            answer = self._connection.recv(_INT.size)
        if not answer:
            raise AssertionError(f"the fork server ended: {self._process.communicate()[1]!r}")
        return int(_INT.unpack(answer)[0])

    def _stop(self) -> None:
        self._connection.close()
        self._process.communicate()


_servers: list[_ForkServer] = []
_starting = threading.Lock()


def start(
    module: str,
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    fresh: bool = False,
    tracer: Sequence[str] = (),
) -> Forked | subprocess.Popen[str]:
    """Start ``python -m MODULE ARGUMENTS`` in the repository, without standard input.

    Args:
        module: The program.
        arguments: Its arguments.
        env: All its environment variables; by default ``offline_environment``. If they differ from
            these in one that libraries read when they are imported, it gets a new interpreter.
        stdout: ``subprocess.PIPE`` or ``subprocess.DEVNULL``.
        stderr: The same, or ``subprocess.STDOUT``.
        fresh: Whether it gets a new interpreter in any case.
        tracer: A command that starts the new interpreter, such as ``["strace", "-D"]``.
    """
    env = offline_environment() if env is None else env
    fresh = fresh or bool(tracer)
    with _starting:
        if not _servers and not fresh:
            _servers.append(_ForkServer())
    if fresh or not _servers[0].serves(env):
        return subprocess.Popen(
            [*tracer, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    null = os.open(os.devnull, os.O_RDWR)
    out, out_end = os.pipe() if stdout == subprocess.PIPE else (None, os.dup(null))
    if stderr == subprocess.STDOUT:
        error, error_end = None, os.dup(out_end)
    else:
        error, error_end = os.pipe() if stderr == subprocess.PIPE else (None, os.dup(null))
    ended, ended_end = os.pipe()
    fds = (null, out_end, error_end, ended_end)
    try:
        request = {"module": module, "arguments": list(arguments), "env": dict(env)}
        pid = _servers[0].fork(request, fds)
    finally:
        for fd in fds:
            os.close(fd)
    texts = [None if fd is None else os.fdopen(fd, encoding="utf-8") for fd in (out, error)]
    return Forked(pid, ended, *texts, name=module)


def run(
    module: str,
    arguments: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    timeout: float | None = None,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself, and return its output."""
    process = start(
        module, arguments, env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, fresh=fresh
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr, ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(file.read) for file in (process.stdout, process.stderr)]
        try:
            process.wait(timeout)
        finally:
            process.kill()
        output, errors = (text.result() for text in texts)
    return subprocess.CompletedProcess(
        [module, *arguments], process.wait(), stdout=output, stderr=errors
    )


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork for each request: returns the request in the fork, and None at the end."""
    running: dict[int, int] = {}  # where the exit code of each process is written
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    while True:
        ready = select.select([control, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            for pid, ended in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    os.write(ended, _INT.pack(os.waitstatus_to_exitcode(status)))
                    os.close(running.pop(pid))
        if control not in ready:
            continue
        length, fds, _, _ = socket.recv_fds(control, _INT.size, _FDS)
        if not length:
            return None
        request = control.recv(_INT.unpack(length)[0], socket.MSG_WAITALL)
        pid = os.fork()
        if pid:
            running[pid] = fds.pop()
            for fd in fds:
                os.close(fd)
            control.sendall(_INT.pack(pid))
            continue
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        control.close()
        for number, fd in enumerate(fds[:3]):
            os.dup2(fd, number)
        for fd in (*fds, woken, wake, *running.values()):
            os.close(fd)
        return dict(json.loads(request))


def _run(request: dict[str, Any]) -> None:
    """Become the program."""
    os.environ.clear()
    os.environ.update(request["env"])
    sys.stdout.reconfigure(line_buffering=bool(os.environ.get("PYTHONUNBUFFERED")))  # type: ignore
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in _PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()  # else the first collection of a fork copies every page
    program = _serve(socket.socket(fileno=int(sys.argv[1]))) if sys.argv[1:] else None
    if program is not None:
        _run(program)
