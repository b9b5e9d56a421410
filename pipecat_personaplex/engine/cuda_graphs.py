"""The step as one graph per batch size: launched as a whole, at fixed shapes and addresses.

A graph is recorded by running the step's Python once. Whatever it did then is what every replay
does: so the step reads whose turn it is from a buffer on the device, and nothing from the host.
A batch between two sizes is filled up with rows that step into a slot nobody owns.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import pairwise
from typing import Protocol

import torch
from loguru import logger
from torch import Tensor

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.sampling import CandidateCounts
from pipecat_personaplex.engine.step_buffers import StepBuffers, StepOutput, StepResult

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192)
# Triton compiles, cuBLAS chooses and allocates: all before the recording.
_WARM_UPS = 2
# Samples of replayed and plain steps may differ by this: the libraries may choose other sums.
_ALIKE_PCM = 1e-3

Replay = Callable[[], object]
Compute = Callable[[Batch, Tensor, Tensor, CandidateCounts], StepResult]
"""The step on the device: batch, audio, forced text and candidates to its answer."""


class Capturer(Protocol):
    """Records what a call launches."""

    def capture(self, call: Callable[[], None]) -> Replay:
        """Record ``call``, which may run more than once meanwhile; launch the same with the result.

        Raises:
            Exception: It cannot be recorded.
        """
        ...


class CudaCapturer:
    """CUDA graphs that share one pool of memory.

    They may: nothing that a replay leaves in the pool is read by another.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = _capture_stream(device)
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def capture(self, call: Callable[[], None]) -> Replay:
        """Record ``call`` on a stream of its own, after runs that do not count."""
        with torch.cuda.device(self._device), stays_on_its_stream():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    call()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may allocate meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                call()
        return graph.replay


@contextmanager
def stays_on_its_stream() -> Iterator[None]:
    """Go back to the thread's CUDA stream, where a capture that fails would not."""
    stream = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runners: the libraries keep a workspace for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def batch_sizes(slots: int) -> tuple[int, ...]:
    """Sizes that steps of up to ``slots`` rows come in."""
    return (*(size for size in BATCH_SIZES if size < slots), slots)


def spare_slots(slots: int) -> int:
    """Slots besides, for rows that fill a batch up: none where each batch has its own size."""
    return int(any(large - small > 1 for small, large in pairwise((0, *batch_sizes(slots)))))


class FixedStep:
    """The step between fixed buffers, replayed where it has been captured.

    Args:
        compute: The step.
        slots: The largest batch.
        scratch: A slot that nobody owns; without a spare one, one that nobody owns yet.
        widths: Candidates that every stream ranks; who wants more is stepped without a graph.
        device: Where it runs.
    """

    def __init__(
        self,
        compute: Compute,
        slots: int,
        scratch: int,
        widths: CandidateCounts,
        device: torch.device,
    ):
        self._compute = compute
        self._scratch = scratch
        self._sizes = batch_sizes(slots)
        self._widths = widths
        self._device = device
        self._buffers = StepBuffers(slots, scratch, device)
        self._replays: dict[int, Replay] = {}
        self._told = False
        self.graph_bytes = 0

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return bool(self._replays)

    def capture(self, capturer: Capturer, reset: Callable[[Iterable[int]], None]) -> None:
        """Capture every batch size; where that fails, log why once and go on without.

        Before the first session: every slot is stepped.

        Args:
            capturer: Records.
            reset: Makes the state of some slots new.
        """
        # Graphs that nobody has any more must not be destroyed while another is recorded.
        gc.collect()
        began, free = time.monotonic(), self._free_bytes()
        reason = None
        try:
            # The largest first: the smaller ones then fit into its memory.
            for size in reversed(self._sizes):
                self._buffers.put(size, (), torch.empty(0, FRAME_SAMPLES))
                self._replays[size] = capturer.capture(partial(self._run, size, self._widths))
            if not self._agrees(reset):
                reason = "a replayed step does not say what the step itself says"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason is not None:
            self._replays.clear()
            logger.warning("steps run without graphs, which makes them slower: {}", reason)
            return
        self.graph_bytes = max(0, free - self._free_bytes())
        logger.info(
            "the step is captured for batches of {}: {:.1f} s, {:,.0f} MiB",
            ", ".join(map(str, self._sizes)),
            time.monotonic() - began,
            self.graph_bytes / 2**20,
        )

    def step(
        self, slots: Sequence[int], pcm: Tensor, forced_text: Tensor | None, wanted: CandidateCounts
    ) -> StepOutput:
        """Answer one frame of each of ``slots``; arguments as in ``ModelRunner.step``."""
        size = next(size for size in self._sizes if size >= len(slots))
        self._buffers.put(size, slots, pcm, forced_text)
        replay = self._replays.get(size)
        if replay is not None and self._widths.hold(wanted):
            replay()
        else:
            if replay is not None and not self._told:
                self._told = True
                logger.warning(
                    "a session draws from the {} likeliest tokens, and graphs rank {}: its steps, "
                    "and those of who shares them, run without graphs, which makes them slower",
                    max(wanted),
                    max(self._widths),
                )
            self._run(size, self._widths.widened(wanted))
        return self._buffers.take(len(slots))

    @torch.inference_mode()
    def _run(self, size: int, widths: CandidateCounts) -> None:
        slots, pcm, forced_text = self._buffers.inputs(size)
        self._buffers.answer(self._compute(Batch((), slots), pcm, forced_text, widths))

    def _agrees(self, reset: Callable[[Iterable[int]], None]) -> bool:
        """Whether every graph answers a frame of each of its rows as the step itself does."""
        for size in self._sizes:
            noise = torch.randn(size, FRAME_SAMPLES, generator=torch.Generator().manual_seed(size))
            answers = []
            for run in (self._replays[size], partial(self._run, size, self._widths)):
                reset(range(size))
                self._buffers.put(size, range(size), 0.1 * noise)
                run()
                answers.append(self._buffers.take(size))
            replayed, stepped = answers
            if not torch.equal(replayed.tokens(), stepped.tokens()):
                return False
            if not torch.allclose(replayed.pcm, stepped.pcm, atol=_ALIKE_PCM):
                return False
        return True

    def _free_bytes(self) -> int:
        if self._device.type != "cuda":
            return 0
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]
