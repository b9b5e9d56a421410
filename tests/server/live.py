"""A running server that tests can check for leftovers: sessions, connections, tasks, files."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from websockets.sync.client import ClientConnection, connect

from pipecat_personaplex.errors import SessionFailed
from pipecat_personaplex.server.config import ServerConfig
from tests.helpers.servers import RunningServer, ServedFakeEngine
from tests.server.clients import SessionClient

WAIT = 20.0
"""Seconds after which a test fails."""
IMPATIENT = ServerConfig(
    hello_seconds=2.0, idle_seconds=3.0, resume_seconds=0.2, max_unsent_frames=30
)
"""Limits of a server that drops bad clients quickly."""
MANY = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
"""Hypothesis settings for a live server: examples may be slow and are not stored."""
OPEN = '{"type": "open", "voice": "NATF2"}'

_SERVER_TASKS = (
    *("ServerRunner.", "Server.", "GuardedServer.", "_Server.", "Event.", "AdmissionController."),
    "Acceptor._accept",
)


class LiveServer(RunningServer):
    """``RunningServer``, and ``check_clean``."""

    def __enter__(self) -> LiveServer:
        super().__enter__()
        return self

    @property
    def sessions(self) -> int:
        return self.state.admission.sessions

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks of connections and sessions."""
        names = self.call(
            lambda: [getattr(t.get_coro(), "__qualname__", "?") for t in asyncio.all_tasks()]
        )
        return [name for name in names if not name.startswith(_SERVER_TASKS)]

    def wait_until(self, true: Callable[[], object], seconds: float = WAIT) -> None:
        """Wait until a condition is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "the condition did not become true"
            time.sleep(0.01)

    async def until(self, true: Callable[[], object]) -> None:
        """Wait until a condition is true; other tasks of the test go on."""
        await asyncio.to_thread(self.wait_until, true)

    def check_clean(self) -> None:
        """Wait until no session, permit, connection or task of a client is left."""
        self.wait_until(lambda: self.state.engine.stats().sessions == 0)
        self.wait_until(lambda: self.sessions == 0)
        self.wait_until(lambda: self.state.admission.connections == 0)
        self.wait_until(lambda: not self.tasks)


def open_files() -> int:
    """Count the open file descriptors of this process, which includes the server."""
    return len(os.listdir("/proc/self/fd"))


async def close_all(server: LiveServer, fake: ServedFakeEngine) -> None:
    """End sessions that wait to be resumed."""
    for session in fake.open_sessions:
        session.fail(SessionFailed("enough"))
    await server.until(lambda: server.sessions == 0)


async def refusal(
    server: LiveServer, *messages: str | bytes, after_open: bool = False
) -> tuple[dict[str, Any], int]:
    """Send messages to ``/v1/session``; return the fatal error and the close code."""
    async with SessionClient.connect(server.ws_url) as client:
        if after_open:
            await client.open()
            assert await client.message() == {"type": "ready"}
        for message in messages:
            await client.ws.send(message)
        error, code = await client.ended()
        assert error.get("type") == "error", error
        assert error["fatal"] is True
        text = error["message"]
        assert text and "\n" not in text and "Traceback" not in text
        return error, code


def unharmed(server: LiveServer) -> Iterator[LiveServer]:
    """Yield a server; then check that it serves a call and that the test left nothing behind."""
    call(server)
    server.check_clean()
    before = open_files()
    yield server
    call(server)
    server.check_clean()
    server.wait_until(lambda: open_files() <= before)


def call(server: LiveServer) -> None:
    """Make a short, correct call."""
    with websocket(server, "/v1/session") as ws:
        json.loads(ws.recv(10))
        ws.send(OPEN)
        assert json.loads(ws.recv(10))["type"] == "opened"
        assert json.loads(ws.recv(10))["type"] == "ready"
        for sequence in range(3):
            ws.send(frame(sequence))
            assert ws.recv(10)[1:5] == sequence.to_bytes(4, "big")
        ws.send('{"type": "close"}')
        assert json.loads(ws.recv(10)) == {"type": "closed"}


def websocket(server: LiveServer, path: str) -> ClientConnection:
    return connect(
        server.ws_url + path, proxy=None, compression=None, max_size=None, close_timeout=1
    )


def frame(sequence: int, audio: bytes = bytes(3840)) -> bytes:
    return b"\x01" + sequence.to_bytes(4, "big") + audio
