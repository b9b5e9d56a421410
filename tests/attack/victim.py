"""What an ordinary caller hears while its bot or server is attacked, and what the attack costs.

A victim runs in a process of its own, so that the attacker's work in the test does not delay its
measurement. Its program adds every chunk of audio to a ``Playout`` and prints the ``Harm``::

    python -m tests.attack.victim ws://127.0.0.1:8998 8

A test starts it with ``Victim``, attacks, and checks the result::

    with Victim("tests.attack.victim", server.ws_url, 8) as victim:
        attack()
    harm = victim.harm()
    print(harm)
    harm.check()
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from tests.helpers.forking import start

_LATE_SECONDS = 0.08
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Harm:
    """What an attack did to a caller.

    Attributes:
        heard_seconds: Audio that arrived.
        expected_seconds: Audio that should have arrived.
        chunks: Chunks of audio that arrived.
        late_chunks: Those that arrived more than 80 ms later than the steady stream allows.
        longest_gap_ms: Longest time between the arrivals of two chunks.
    """

    heard_seconds: float
    expected_seconds: float
    chunks: int
    late_chunks: int
    longest_gap_ms: float

    def __str__(self) -> str:
        return (
            f"heard {self.heard_seconds:.1f} of {self.expected_seconds:.1f} s, "
            f"{self.late_chunks} of {self.chunks} chunks late, "
            f"longest gap {self.longest_gap_ms:.0f} ms"
        )

    def check(self) -> None:
        """Assert that the caller was not harmed: at most 1 % late, and no gap over 200 ms."""
        assert self.heard_seconds >= 0.99 * self.expected_seconds - 0.2, str(self)
        assert self.late_chunks <= 0.01 * self.chunks, str(self)
        assert self.longest_gap_ms <= 200, str(self)


@dataclass
class Playout:
    """Records when chunks of a caller's audio arrive.

    Example::

        playout = Playout()
        playout.add(0.08)  # for each chunk, when it arrives
        print(json.dumps(asdict(playout.harm(expected_seconds=8))))
    """

    arrivals: list[tuple[float, float]] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        """Record a chunk that arrives now.

        Args:
            seconds: Its duration.
        """
        self.arrivals.append((time.monotonic(), seconds))

    def harm(self, expected_seconds: float) -> Harm:
        """Compare the arrivals with a steady stream."""
        delays: list[float] = []
        heard = 0.0
        for when, seconds in self.arrivals:
            delays.append(when - heard)
            heard += seconds
        # The least delay is that of a stream that nothing disturbs.
        late = sum(delay - min(delays) > _LATE_SECONDS for delay in delays)
        times = [when for when, _ in self.arrivals]
        gaps = [after - before for before, after in pairwise(times)]
        longest = max(gaps, default=float("inf"))
        return Harm(heard, expected_seconds, len(delays), late, longest * 1e3)


class Victim:
    """Runs a victim's program while a ``with`` block runs, and reads what it prints.

    The program prints ``ready`` when its call is connected, and at its end a ``Harm`` as JSON.

    Args:
        module: The program, such as ``tests.attack.victim``.
        arguments: Its arguments.
    """

    def __init__(self, module: str, *arguments: str | float):
        self._module, self._arguments = module, [str(each) for each in arguments]

    def __enter__(self) -> Victim:
        self._process = start(self._module, self._arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.strip() != "ready":
            self._process.kill()
            raise AssertionError(f"the victim could not connect: {line!r}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            try:
                self._process.wait(_WAIT_SECONDS)
            finally:
                self._process.kill()
            self._output = stdout.read()

    @property
    def running(self) -> bool:
        """Whether the victim's call still goes on."""
        return self._process.poll() is None

    def harm(self) -> Harm:
        """Return what it measured; call this after the block."""
        assert self._process.returncode == 0, self._output
        return Harm(**json.loads(self._output.splitlines()[-1]))


def memory_mib(pid: int) -> float:
    """Memory of a process and its children that no file backs, in MiB; Linux only."""
    total = 0.0
    with suppress(FileNotFoundError):  # a child that has just ended
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total = int(line.split()[1]) / 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += memory_mib(int(child))
    return total


async def _call(url: str, seconds: float) -> Harm:
    """Talk to ``/v1/session`` in real time; as every caller does, without a key."""
    from tests.server.clients import SessionClient

    frames = round(seconds / 0.08)
    playout = Playout()
    async with SessionClient.opened(url, voice="NATM1") as client:
        print("ready", flush=True)

        async def listen() -> None:
            for _ in range(frames):
                await client.frame()
                playout.add(0.08)

        listening = asyncio.create_task(listen())
        started = time.monotonic()
        for index in range(frames):
            await client.push()
            await asyncio.sleep(max(0.0, started + 0.08 * (index + 1) - time.monotonic()))
        with suppress(TimeoutError):  # what has not arrived counts as not heard
            await asyncio.wait_for(listening, 10)
    return playout.harm(seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_call(sys.argv[1], float(sys.argv[2]))))))
