"""The step as one graph per batch size, launched as a whole at fixed shapes and addresses.

A graph is recorded by running the step's Python once, and every replay repeats what that run
launched. A captured step therefore reads its slots from a buffer on the device and takes nothing
from the host. A batch between two captured sizes is padded with rows that step into a scratch
slot.
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
from pipecat_personaplex.engine.step_buffers import StepBuffers, StepInput, StepOutput, StepResult

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192)
# Before the recording, Triton compiles its kernels and cuBLAS selects algorithms and workspaces.
_WARM_UPS = 2
# Largest difference of samples between a replayed and an eager step: a library may select another
# algorithm, and with it another order of summation.
_PCM_TOLERANCE = 1e-3

Replay = Callable[[], object]
Compute = Callable[[StepInput], StepResult]
"""The step on the device."""


class Capturer(Protocol):
    """Records what a call launches."""

    def capture(self, call: Callable[[], None]) -> Replay:
        """Record ``call``, which may run several times meanwhile; the result launches the same.

        Raises:
            Exception: The call cannot be recorded.
        """
        ...


class CudaCapturer:
    """Records CUDA graphs that share one memory pool.

    Sharing is safe because no replay reads what another replay has left in the pool.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = _capture_stream(device)
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def capture(self, call: Callable[[], None]) -> Replay:
        """Record ``call`` on a separate stream, after warm-up runs."""
        with torch.cuda.device(self._device), preserve_stream():
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    call()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads of the process may allocate during the recording.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                call()
        return graph.replay


@contextmanager
def preserve_stream() -> Iterator[None]:
    """Restore the thread's CUDA stream at the end; a failed capture does not restore it."""
    stream = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


@lru_cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all runners: GPU libraries hold a workspace per stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def batch_sizes(slots: int) -> tuple[int, ...]:
    """The batch sizes that are captured for up to ``slots`` sessions."""
    return (*(size for size in BATCH_SIZES if size < slots), slots)


def spare_slots(slots: int) -> int:
    """Extra slots for padding rows: 1, or 0 if every possible batch size is captured."""
    return int(any(large - small > 1 for small, large in pairwise((0, *batch_sizes(slots)))))


class FixedStep:
    """Runs the step between fixed buffers, and replays it if it has been captured.

    Args:
        compute: The step.
        slots: The largest batch.
        scratch: The slot of padding rows. Without padding, any slot that has no session yet.
        counts: Candidates that a captured step ranks; a batch that requests more runs without a
            graph.
        device: Device of the step.
    """

    def __init__(
        self,
        compute: Compute,
        slots: int,
        scratch: int,
        counts: CandidateCounts,
        device: torch.device,
    ):
        self._compute = compute
        self._sizes = batch_sizes(slots)
        self._counts = counts
        self._device = device
        self._buffers = StepBuffers(slots, scratch, device)
        self._replays: dict[int, Replay] = {}
        self._warned = False
        self.graph_bytes = 0

    @property
    def captured(self) -> bool:
        """Whether steps are replayed."""
        return bool(self._replays)

    def capture(self, capturer: Capturer, reset: Callable[[Iterable[int]], None]) -> None:
        """Capture every batch size; if that fails, log the reason once and run without graphs.

        Call it before the first session, because it steps every slot.

        Args:
            capturer: Records the step.
            reset: Resets the state of some slots.
        """
        # Destroying an unused graph during a recording would invalidate the recording.
        gc.collect()
        began, free = time.monotonic(), self._free_bytes()
        reason = None
        try:
            # The largest first: the smaller ones then fit into the memory of its pool.
            for size in reversed(self._sizes):
                self._buffers.write(size, (), torch.empty(0, FRAME_SAMPLES))
                self._replays[size] = capturer.capture(partial(self._run, size, self._counts))
            if not self._replays_match(reset):
                reason = "a replayed step differs from the eager step"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if reason is not None:
            self._replays.clear()
            logger.warning("steps run without graphs, which makes them slower: {}", reason)
            return
        self.graph_bytes = max(0, free - self._free_bytes())
        logger.info(
            "captured the step for batches of {} in {:.1f} s, {:,.0f} MiB",
            ", ".join(map(str, self._sizes)),
            time.monotonic() - began,
            self.graph_bytes / 2**20,
        )

    def step(
        self,
        slots: Sequence[int],
        pcm: Tensor,
        forced_text: Tensor | None,
        requested: CandidateCounts,
    ) -> StepOutput:
        """Compute one frame of each of ``slots``.

        Args:
            slots: The sessions' slots.
            pcm: Their audio, float32 [len(slots), 1920], on the host.
            forced_text: As ``StepInput.forced_text``, int64 [len(slots)]; None samples for all.
            requested: Candidates that these sessions request.
        """
        # Pad the batch to the next captured size.
        size = next(size for size in self._sizes if size >= len(slots))
        self._buffers.write(size, slots, pcm, forced_text)
        replay = self._replays.get(size)
        if replay is not None and self._counts.covers(requested):
            replay()
        else:
            if replay is not None and not self._warned:
                self._warned = True
                logger.warning(
                    "a session samples from the {} likeliest tokens, but graphs rank {}: every "
                    "step that includes such a session runs without a graph, which is slower",
                    max(requested),
                    max(self._counts),
                )
            self._run(size, self._counts.maximum(requested))
        return self._buffers.read(len(slots))

    @torch.inference_mode()
    def _run(self, size: int, counts: CandidateCounts) -> None:
        """The captured call: fixed input buffer -> step -> fixed output buffer."""
        slots, pcm, forced_text = self._buffers.inputs(size)
        # No slots on the host and no host positions: they would become constants of the graph.
        step = StepInput(Batch((), slots), pcm, forced_text, counts)
        self._buffers.store(self._compute(step))

    def _replays_match(self, reset: Callable[[Iterable[int]], None]) -> bool:
        """Whether every graph computes the same frame as the eager step, in each of its rows."""
        for size in self._sizes:
            noise = torch.randn(size, FRAME_SAMPLES, generator=torch.Generator().manual_seed(size))
            outputs = []
            for run in (self._replays[size], partial(self._run, size, self._counts)):
                reset(range(size))
                self._buffers.write(size, range(size), 0.1 * noise)
                run()
                outputs.append(self._buffers.read(size))
            replayed, eager = outputs
            if not torch.equal(replayed.tokens(), eager.tokens()):
                return False
            if not torch.allclose(replayed.pcm, eager.pcm, atol=_PCM_TOLERANCE):
                return False
        return True

    def _free_bytes(self) -> int:
        """Free device memory in bytes, with PyTorch's cache emptied; 0 on a CPU."""
        if self._device.type != "cuda":
            return 0
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]
