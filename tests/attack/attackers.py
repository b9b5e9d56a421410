"""Clients that attack a server over loopback, each as a program of its own.

    python -m tests.attack.attackers metrics 127.0.0.1:8998 3

An attacker connects from 127.0.0.66, so that it is another address than the victim.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

ADDRESS = "127.0.0.66"
_WORKERS = 32
_UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Attack:
    """What an attacker knows: where the server is, and until when to attack.

    Attributes:
        sent: What it has sent: requests, connections or messages.
    """

    def __init__(self, host: str, port: int, seconds: float):
        self.host, self.port = host, port
        self.seconds = seconds
        self.begin()
        self.sent = 0

    def begin(self) -> None:
        """Count the time from now on: what was prepared before is no attack."""
        self.end = time.monotonic() + self.seconds

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, local_addr=(ADDRESS, 0))

    async def requests(self, request: str) -> None:
        """Send a request in each of many connections, one after the other."""

        async def work() -> None:
            while not self.over:
                with suppress(OSError):
                    reader, writer = await self.connect()
                    writer.write(request.encode())
                    self.sent += 1
                    async with asyncio.timeout(2):
                        await reader.read()
                    writer.close()

        await asyncio.gather(*(work() for _ in range(_WORKERS)), return_exceptions=True)


async def metrics(attack: Attack) -> None:
    """Request the metrics without a pause."""
    await attack.requests("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


async def pipelined(attack: Attack) -> None:
    """Send a hundred requests at once in each connection."""
    await attack.requests("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


async def upgrades(attack: Attack) -> None:
    """Request upgrades that are refused."""
    await attack.requests(_UPGRADE.format(path="/nothing"))


async def idle(attack: Attack) -> None:
    """Hold more connections than the server has places for, and send nothing."""
    held = []
    while not attack.over:
        with suppress(OSError):
            held.append(await attack.connect())
            attack.sent += 1
        if attack.sent % 50 == 0:
            await asyncio.sleep(0.02)
    for _, writer in held:
        writer.close()


async def compressed_silence(attack: Attack) -> None:
    """Send long silence as few bytes to ``/api/chat``, 90 messages a second."""
    import numpy as np
    import sphn
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed

    writer = sphn.OpusStreamWriter(24_000)
    audio = b"".join(writer.append_pcm(np.zeros(1920, np.float32)) for _ in range(360))
    url = f"ws://{attack.host}:{attack.port}/api/chat"
    attack.begin()
    while not attack.over:
        with suppress(ConnectionClosed, OSError, TimeoutError):
            async with connect(url, proxy=None, compression=None, close_timeout=0.1) as ws:
                await ws.recv()
                while not attack.over:
                    await ws.send(b"\x01" + audio)
                    attack.sent += 1
                    await asyncio.sleep(1 / 90)
        await asyncio.sleep(0.01)


ATTACKS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    attack.__name__: attack for attack in (metrics, pipelined, upgrades, idle, compressed_silence)
}


def main(name: str, address: str, seconds: float) -> None:
    host, _, port = address.partition(":")
    attack = Attack(host, int(port), seconds)
    asyncio.run(ATTACKS[name](attack))  # type: ignore[arg-type]
    print(json.dumps({"sent": attack.sent}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
