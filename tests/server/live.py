"""A running server: what it refuses, what is left of its clients, and whether it serves others."""

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
"""Seconds after which a test gives up."""
IMPATIENT = ServerConfig(
    hello_seconds=2.0, idle_seconds=3.0, resume_seconds=0.2, max_unsent_frames=30
)
"""The limits of a server that is soon rid of bad clients."""
MANY = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
"""How Hypothesis tries a server: slow examples are no fault, and none is kept."""
OPEN = '{"type": "open", "voice": "NATF2"}'

_OWN_TASKS = ("Host.", "Server.", "Event.", "Door.")


class LiveServer(RunningServer):
    """``RunningServer``, and ``check_clean``."""

    def __enter__(self) -> LiveServer:
        super().__enter__()
        return self

    @property
    def sessions(self) -> int:
        return self.state.door.sessions

    @property
    def tasks(self) -> list[str]:
        """Tasks of connections and sessions."""
        names = self.call(
            lambda: [getattr(t.get_coro(), "__qualname__", "?") for t in asyncio.all_tasks()]
        )
        return [name for name in names if not name.startswith(_OWN_TASKS)]

    def wait_until(self, true: Callable[[], object], seconds: float = WAIT) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not come true"
            time.sleep(0.01)

    async def until(self, true: Callable[[], object]) -> None:
        await asyncio.to_thread(self.wait_until, true)

    def check_clean(self) -> None:
        """Nobody is left: no session, no ticket, no connection, no task."""
        self.wait_until(lambda: self.state.engine.stats().sessions == 0)
        self.wait_until(lambda: self.sessions == 0)
        self.wait_until(lambda: self.state.door.connections == 0)
        self.wait_until(lambda: not self.tasks)


def open_files() -> int:
    """File descriptors of this process, which the server is in."""
    return len(os.listdir("/proc/self/fd"))


async def close_all(server: LiveServer, fake: ServedFakeEngine) -> None:
    """End what tests leave to be resumed."""
    for session in fake.open_sessions:
        session.fail(SessionFailed("enough"))
    await server.until(lambda: server.sessions == 0)


async def refusal(
    server: LiveServer, *messages: str | bytes, after_open: bool = False
) -> tuple[dict[str, Any], int]:
    """The fatal error that these messages to ``/v1/session`` end in, and the close code."""
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
    """A server that is as it was, after the test: free slots, no file, no task, good service."""
    call(server)
    server.check_clean()
    before = open_files()
    yield server
    call(server)
    server.check_clean()
    server.wait_until(lambda: open_files() <= before)


def call(server: LiveServer) -> None:
    """A client that behaves."""
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
