"""A small simulation of many engines and their callers, event by event.

Calls arrive at random and go to the least loaded GPU, as ``RemoteEngine`` sends them. Before a call
begins, its GPU computes the prompt, or takes it from the prefix cache. A long call has replays. A
GPU computes prompts and replays one after the other, in the time that the steps leave. A group of
GPUs, the failure domain, may be drained, and may fail: its calls move to others, each with a
replay.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipecat_personaplex.constants import FRAME_SECONDS

_UNAVAILABLE = 1 << 30
"""Load of a GPU that takes no calls."""


@dataclass(frozen=True)
class CallModel:
    """How callers behave. All of it is an assumption about the users of a service.

    Attributes:
        mean_seconds: Mean length of a call.
        sigma: Spread of the lengths, as the standard deviation of their logarithm; 0 for an
            exponential distribution.
        personas: Number of different personas; the k-th is used in proportion to 1 / k.
        prompt_frames: Frames of a persona's prompt.
        patience: Seconds for which a caller waits for a free slot; 0: refused at once.
    """

    mean_seconds: float = 180.0
    sigma: float = 1.0
    personas: int = 50
    prompt_frames: int = 300
    patience: float = 0.0

    def length(self, rng: random.Random) -> float:
        """Length of one call in seconds."""
        if self.sigma == 0:
            return rng.expovariate(1 / self.mean_seconds)
        return rng.lognormvariate(math.log(self.mean_seconds) - self.sigma**2 / 2, self.sigma)


@dataclass(frozen=True)
class GpuModel:
    """One GPU and its engine.

    Attributes:
        slots: Calls at once.
        step_ms: Time of a step without callers: reading the weights, and everything fixed.
        step_ms_per_call: Time that each caller adds.
        prefill_frames_per_second: Prompt frames computed in a second without callers.
        cached_ms: Time to start a call whose prompt is cached.
        cached_prompts: Prompts that the prefix cache holds.
        replay_after: Seconds of a call after which its first replay begins.
        replay_every: Seconds between later replays.
        replay_frames: Frames that a replay computes.
        moved_frames: Most frames that are computed for a call that moves to another GPU.
    """

    slots: int
    step_ms: float = 0.0
    step_ms_per_call: float = 0.0
    prefill_frames_per_second: float = math.inf
    cached_ms: float = 0.0
    cached_prompts: int = 8
    replay_after: float = math.inf
    replay_every: float = math.inf
    replay_frames: int = 0
    moved_frames: int = 1

    def free_share(self, calls: int) -> float:
        """Part of the time that the steps of this many calls leave."""
        step = self.step_ms + self.step_ms_per_call * calls
        return max(0.01, 1 - step / (FRAME_SECONDS * 1e3))


class Phase(NamedTuple):
    """A part of the simulation, whose events are counted apart.

    Attributes:
        name: Its name.
        seconds: Its length.
        action: What happens at its beginning: None, ``"drain"`` or ``"fail"``, of the first domain.
            The domain that failed or was drained before is back.
    """

    name: str
    seconds: float
    action: str | None = None


@dataclass
class Counts:
    """What happened in one phase.

    Attributes:
        arrivals: Calls that requested a slot.
        refused: Calls that got none.
        waited: Calls that waited for a slot, and got one.
        hits: Calls whose prompt was cached.
        completed: Calls that ended as their callers wanted.
        moved: Calls of a failed domain that went on elsewhere.
        lost: Calls of a failed domain that found no slot elsewhere.
        slot_wait: Seconds that each call which waited for a slot waited.
        join_wait: Seconds from the slot to the first frame, for each call.
        replay_wait: Seconds from the begin of each replay to its effect.
        move_wait: Seconds from the failure to the next frame, for each moved call.
        busy_seconds: Sum over all slots of the time in which they had a call.
        active_before: Calls that ran when the phase began.
        drain_wait: Seconds until each call of the drained domain ends.
    """

    arrivals: int = 0
    refused: int = 0
    waited: int = 0
    hits: int = 0
    completed: int = 0
    moved: int = 0
    lost: int = 0
    slot_wait: list[float] = field(default_factory=list)
    join_wait: list[float] = field(default_factory=list)
    replay_wait: list[float] = field(default_factory=list)
    move_wait: list[float] = field(default_factory=list)
    busy_seconds: float = 0.0
    active_before: int = 0
    drain_wait: list[float] = field(default_factory=list)


class _Call:
    """A running call. ``epoch`` counts its moves; older events are ignored."""

    __slots__ = ("began", "ends", "epoch", "gpu")

    def __init__(self, gpu: int, began: float, ends: float):
        self.gpu, self.began, self.ends = gpu, began, ends
        self.epoch = 0


class Fleet:
    """GPUs with their callers.

    Example::

        fleet = Fleet(GpuModel(slots=64), gpus=8, domain=8, calls=CallModel(), load=400, seed=0)
        counts = fleet.run([Phase("warm-up", 1800), Phase("steady", 3600)])
        print(counts["steady"].refused / counts["steady"].arrivals)

    Args:
        gpu: Every GPU.
        gpus: Their number.
        domain: GPUs that are drained, and fail, together.
        calls: How callers behave.
        load: Offered load: mean number of calls at once if none were refused.
        seed: Seed of all random numbers.
        detection: Seconds until a client notices that its server has failed.
    """

    def __init__(
        self,
        gpu: GpuModel,
        *,
        gpus: int,
        domain: int,
        calls: CallModel,
        load: float,
        seed: int,
        detection: float = 1.0,
    ):
        self._gpu, self._model, self._detection = gpu, calls, detection
        self._domain = range(min(domain, gpus))
        self._rng = random.Random(seed)
        self._interval = calls.mean_seconds / load
        self._personas = range(calls.personas)
        total = 0.0
        self._persona_weights = [total := total + 1 / (k + 1) for k in range(calls.personas)]
        # Calls of each GPU that takes calls, else _UNAVAILABLE; and of each GPU in any case.
        self._loads = [0] * gpus
        self._calls: list[set[_Call]] = [set() for _ in range(gpus)]
        self._work_done = [0.0] * gpus  # when the GPU has computed its prompts and replays
        self._cached: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(gpus)]
        self._waiting: deque[tuple[float, int]] = deque()  # arrival, number of the caller
        self._gave_up: set[int] = set()
        self._now = 0.0
        self._busy_from = 0.0
        self._active = 0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = 0
        self.counts = Counts()

    @property
    def active(self) -> int:
        """Calls that run now."""
        return self._active

    @property
    def waiting(self) -> int:
        """Callers that wait for a slot now."""
        return len(self._waiting) - len(self._gave_up)

    def run(self, phases: list[Phase]) -> dict[str, Counts]:
        """Simulate one phase after the other; return the counts by name."""
        self._at(self._rng.expovariate(1 / self._interval), self._arrive)
        results, end = {}, self._now
        for phase in phases:
            self.counts = results[phase.name] = Counts(active_before=self._active)
            self._begin(phase.action)
            end += phase.seconds
            while self._events and self._events[0][0] <= end:
                time, _, event, arguments = heapq.heappop(self._events)
                self._advance(time)
                event(*arguments)
            self._advance(end)
        return results

    def _at(self, time: float, event: Callable[..., None], *arguments: object) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (time, self._numbers, event, arguments))

    def _advance(self, time: float) -> None:
        self.counts.busy_seconds += self._active * (time - self._now)
        self._now = time

    def _begin(self, action: str | None) -> None:
        """Start a phase: the domain takes calls again, or is drained, or fails."""
        for gpu in self._domain:
            self._loads[gpu] = len(self._calls[gpu])
        while self._waiting and min(self._loads) < self._gpu.slots:
            self._admit_next()
        if action is None:
            return
        for gpu in self._domain:
            self._loads[gpu] = _UNAVAILABLE
        if action == "drain":
            drained = [call for gpu in self._domain for call in self._calls[gpu]]
            self.counts.drain_wait = sorted(call.ends - self._now for call in drained)
            return
        assert action == "fail", action
        for gpu in self._domain:
            failed, self._calls[gpu] = self._calls[gpu], set()
            self._cached[gpu].clear()
            self._active -= len(failed)
            for call in sorted(failed, key=lambda call: call.began):
                call.epoch += 1
                self._at(self._now + self._detection, self._move, call, self._now)

    def _arrive(self) -> None:
        self.counts.arrivals += 1
        self._at(self._now + self._rng.expovariate(1 / self._interval), self._arrive)
        gpu = self._least_loaded()
        if gpu is not None:
            self._admit(gpu)
        elif self._model.patience > 0:
            number = self._numbers
            self._waiting.append((self._now, number))
            if self._model.patience < math.inf:
                self._at(self._now + self._model.patience, self._give_up, number)
        else:
            self.counts.refused += 1

    def _least_loaded(self) -> int | None:
        least = min(self._loads)
        return None if least >= self._gpu.slots else self._loads.index(least)

    def _admit(self, gpu: int) -> None:
        """Give a new call a slot, and compute its prompt."""
        [persona] = self._rng.choices(self._personas, cum_weights=self._persona_weights)
        cached = self._cached[gpu]
        if persona in cached:
            self.counts.hits += 1
            cached.move_to_end(persona)
            seconds = self._gpu.cached_ms / 1e3
        else:
            seconds = self._model.prompt_frames / self._gpu.prefill_frames_per_second
            cached[persona] = None
            if len(cached) > self._gpu.cached_prompts:
                cached.popitem(last=False)
        wait = self._compute(gpu, seconds)
        self.counts.join_wait.append(wait)
        begins = self._now + wait
        self._place(_Call(gpu, begins, begins + self._model.length(self._rng)), gpu)

    def _place(self, call: _Call, gpu: int, replay_after: float | None = None) -> None:
        call.gpu = gpu
        self._calls[gpu].add(call)
        self._loads[gpu] += 1
        self._active += 1
        self._at(call.ends, self._end, call, call.epoch)
        after = self._gpu.replay_after if replay_after is None else replay_after
        begins = max(self._now, call.began) + after
        if begins < call.ends:
            self._at(begins, self._replay, call, call.epoch)

    def _compute(self, gpu: int, seconds: float) -> float:
        """Let a GPU compute something after what it computes already; return the time it takes."""
        share = self._gpu.free_share(len(self._calls[gpu]))
        self._work_done[gpu] = max(self._now, self._work_done[gpu]) + seconds / share
        return self._work_done[gpu] - self._now

    def _replay(self, call: _Call, epoch: int) -> None:
        if call.epoch != epoch:
            return
        seconds = self._gpu.replay_frames / self._gpu.prefill_frames_per_second
        self.counts.replay_wait.append(self._compute(call.gpu, seconds))
        if self._now + self._gpu.replay_every < call.ends:
            self._at(self._now + self._gpu.replay_every, self._replay, call, epoch)

    def _end(self, call: _Call, epoch: int) -> None:
        if call.epoch != epoch:
            return
        self.counts.completed += 1
        gpu = call.gpu
        self._calls[gpu].remove(call)
        self._active -= 1
        if self._loads[gpu] == _UNAVAILABLE:
            return
        self._loads[gpu] -= 1
        if self._waiting:
            self._admit_next()

    def _admit_next(self) -> None:
        """Give a free slot to the caller who has waited longest."""
        while self._waiting:
            arrival, number = self._waiting.popleft()
            if number in self._gave_up:
                self._gave_up.remove(number)
                continue
            gpu = self._least_loaded()
            assert gpu is not None, "a slot is free"
            self.counts.waited += 1
            self.counts.slot_wait.append(self._now - arrival)
            self._admit(gpu)
            return

    def _give_up(self, number: int) -> None:
        if any(number == waiting for _, waiting in self._waiting):
            self._gave_up.add(number)
            self.counts.refused += 1

    def _move(self, call: _Call, failed: float) -> None:
        """Continue a call of a failed domain elsewhere: its prompt and past are computed again."""
        if call.ends <= self._now:
            self.counts.completed += 1  # the caller hung up meanwhile
            return
        gpu = self._least_loaded()
        if gpu is None:
            self.counts.lost += 1
            return
        self.counts.moved += 1
        past = max(0.0, failed - call.began) / FRAME_SECONDS
        frames = min(self._model.prompt_frames + past, self._gpu.moved_frames)
        wait = self._compute(gpu, frames / self._gpu.prefill_frames_per_second)
        self.counts.move_wait.append(self._now + wait - failed)
        self._place(call, gpu, self._gpu.replay_every)
