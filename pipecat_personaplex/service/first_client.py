"""Whether a pipeline starts before its caller is there."""

from __future__ import annotations

from collections.abc import Iterator

from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor

# Of Pipecat's transports: they start, connect, and push a ClientConnectedFrame when the caller is
# there; until then, what they play is lost. By name, since their modules need optional packages.
_INPUTS = frozenset({"SmallWebRTCInputTransport", "DailyInputTransport"})


def announces_client(worker: PipelineWorker | None) -> bool:
    """Whether the pipeline's transport pushes a ``ClientConnectedFrame`` when the caller is there.

    False for transports that have their caller when the pipeline starts, or announce none.

    Args:
        worker: The pipeline's worker, if it has one.
    """
    return worker is not None and any(
        kind.__name__ in _INPUTS
        for processor in _processors(worker.pipeline)
        for kind in type(processor).__mro__
    )


def _processors(processor: FrameProcessor) -> Iterator[FrameProcessor]:
    """A processor and all that it contains."""
    yield processor
    for each in processor.processors:
        yield from _processors(each)
