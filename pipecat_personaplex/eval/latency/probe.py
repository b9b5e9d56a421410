"""Sends sounds into a call and times what comes back, on one clock."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pipecat_personaplex.audio import AUDIBLE_RMS, Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import EngineUnreachable

CHUNK_SECONDS = 0.02
_HOP_SECONDS = 0.005
_MAX_WAITING_SECONDS = 0.1
_TONE_SECONDS, _TONE_HERTZ = 0.1, 1_000.0
_QUIET_SECONDS = 0.6  # before a sound is sent, so that what comes back belongs to it
_MAX_WAIT_SECONDS = 15.0  # for quiet
_CONNECT_SECONDS = 30.0


class Recorder:
    """What a call plays to the caller, by the time at which it is heard. Safe on any thread.

    A chunk is heard when it arrives, or after the chunk before it. As in a player's jitter buffer,
    silence is skipped while more than 100 ms wait.

    Args:
        rate: Sample rate of the chunks.

    Example::

        recorder = Recorder(8000)
        recorder.add(time.monotonic(), chunk)
        heard = recorder.first_sound(since=sent)
    """

    def __init__(self, rate: int):
        self._rate = rate
        self._lock = threading.Lock()
        self._sounds: list[float] = []  # times of loud hops
        self._rest = np.zeros(0, np.float32)
        self._end = 0.0
        self.seconds = 0.0
        self.arrived = threading.Event()

    def add(self, arrival: float, chunk: Pcm) -> None:
        """Add a chunk, float32 [n], that arrived at this time in monotonic seconds."""
        hop = round(_HOP_SECONDS * self._rate)
        with self._lock:
            self.seconds += len(chunk) / self._rate
            start = max(arrival, self._end)
            if start - arrival > _MAX_WAITING_SECONDS and np.abs(chunk).max() < AUDIBLE_RMS:
                return
            self._end = start + len(chunk) / self._rate
            samples = np.concatenate([self._rest, chunk])
            start -= len(self._rest) / self._rate
            count = len(samples) // hop
            hops = samples[: count * hop].reshape(count, hop)
            self._rest = samples[count * hop :]
            loud = np.sqrt(np.mean(np.square(hops), axis=1)) > AUDIBLE_RMS
            self._sounds += (start + np.flatnonzero(loud) * _HOP_SECONDS).tolist()
        self.arrived.set()

    def first_sound(self, since: float) -> float | None:
        """Return the time of the first sound at or after this time; None before it arrives."""
        with self._lock:
            return next((sound for sound in self._sounds if sound >= since), None)

    def quiet_for(self, now: float) -> float:
        """Seconds since the last sound."""
        with self._lock:
            return now - self._sounds[-1] if self._sounds else now


class Line(Protocol):
    """A call as its caller sees it; open while its ``async with`` block runs."""

    rate: int
    recorder: Recorder

    async def send(self, chunk: Pcm) -> None:
        """Send the next 20 ms, float32 [rate / 50]. The caller of this method paces."""
        ...

    async def __aenter__(self) -> Line:
        """Connect."""
        ...

    async def __aexit__(self, *_: object) -> None:
        """Hang up."""
        ...


@dataclass(frozen=True)
class Latencies:
    """What a probe measures.

    Attributes:
        seconds: From the start (a tone) or the end (speech) of each sound to the first sound that
            comes back; without the unanswered ones.
        unanswered: Sounds after which nothing came back in time.
    """

    seconds: tuple[float, ...]
    unanswered: int

    @property
    def median(self) -> float:
        """Median; nan without any."""
        return float(np.median(self.seconds)) if self.seconds else float("nan")

    def percentile(self, percent: float) -> float:
        """A percentile; nan without any."""
        return float(np.percentile(self.seconds, percent)) if self.seconds else float("nan")


def tone() -> Pcm:
    """100 ms of 1 kHz, float32 mono 24 kHz."""
    times = np.arange(int(_TONE_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * _TONE_HERTZ * times)).astype(np.float32)


async def probe(
    line: Line, sound: Pcm, count: int, *, from_end: bool, patience: float = 4.0
) -> Latencies:
    """Send a sound several times, and time what comes back.

    Each sound is sent once the line has been quiet for 0.6 s. If that takes more than 15 s, the
    sound is not sent and counts as unanswered, because what is heard could not be told from an
    answer.

    Args:
        line: A connected call.
        sound: float32 mono 24 kHz.
        count: How many times.
        from_end: Whether latency counts from the end of the sound; else from its start.
        patience: Seconds after the end of the sound in which something must come back.

    Raises:
        EngineUnreachable: No audio arrives.
    """
    import soxr

    if line.rate != SAMPLE_RATE:
        sound = soxr.resample(sound, SAMPLE_RATE, line.rate).astype(np.float32)
    size = round(CHUNK_SECONDS * line.rate)
    chunks = np.zeros((-(-len(sound) // size), size), np.float32)
    chunks.reshape(-1)[: len(sound)] = sound
    first_loud = int(np.argmax(np.abs(sound) > 0.01)) / line.rate
    clock = _Clock(line)
    await clock.wait_for_audio()
    results: list[float] = []
    for _ in range(count):
        if not await clock.silence_until_quiet():
            continue
        sent = await clock.send(chunks)
        reference = sent + (len(sound) / line.rate if from_end else first_loud)
        deadline = sent + len(sound) / line.rate + patience
        # An answer may start before the caller has finished; the caller's own start may not.
        heard = None
        while heard is None and time.monotonic() < deadline:
            await clock.send(np.zeros((1, size), np.float32))
            heard = line.recorder.first_sound(sent)
        if heard is not None:
            results.append(heard - reference)
    return Latencies(tuple(results), count - len(results))


class _Clock:
    """Sends chunks in real time: each when its last sample would have been spoken."""

    def __init__(self, line: Line):
        self._line = line
        self._start = time.monotonic()
        self._sent = 0
        self._silence = np.zeros((1, round(CHUNK_SECONDS * line.rate)), np.float32)

    async def send(self, chunks: Pcm) -> float:
        """Send chunks [n, size]; returns when the first sample was spoken."""
        begun = self._start + self._sent * CHUNK_SECONDS
        for chunk in chunks:
            self._sent += 1
            due = self._start + self._sent * CHUNK_SECONDS
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._line.send(chunk)
        return begun

    async def wait_for_audio(self) -> None:
        deadline = time.monotonic() + _CONNECT_SECONDS
        while not self._line.recorder.arrived.is_set():
            if time.monotonic() > deadline:
                raise EngineUnreachable(
                    f"no audio has arrived in {_CONNECT_SECONDS:.0f} s; is the bot running?"
                )
            await self.send(self._silence)

    async def silence_until_quiet(self) -> bool:
        """Send silence until the line is quiet; returns whether it is."""
        begun = time.monotonic()
        while True:
            await self.send(self._silence)
            now = time.monotonic()
            quiet = min(now - begun, self._line.recorder.quiet_for(now)) >= _QUIET_SECONDS
            if quiet or now - begun > _MAX_WAIT_SECONDS:
                return quiet
