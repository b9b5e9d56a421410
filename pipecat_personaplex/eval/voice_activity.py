"""Voice activity: where a recording has speech. An energy gate, or Silero's network."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import AUDIBLE_RMS, Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.eval.scoring.spans import Span, merge

DetectorName = Literal["energy", "silero"]
Detector = Callable[[Pcm, int], list[Span]]
"""Finds spans of speech in float32 [n] at a sample rate."""

_HOP_SECONDS = 0.02
_GAP_SECONDS = 0.2  # a shorter silence is inside a word or between two
_MIN_SECONDS = 0.08  # a shorter sound is a click
# A caller speaks if 20 ms are louder than this share of the loudest speech, and than this many
# times the noise.
_CALLER_PEAK_SHARE, _CALLER_FLOOR_RATIO = 0.06, 2.5
_SILERO_RATE = 16_000
_SILERO_WINDOW, _SILERO_CONTEXT = 512, 64
_SILERO_ON, _SILERO_OFF = 0.5, 0.35
_SILERO_GAP_SECONDS, _SILERO_MIN_SECONDS, _SILERO_PAD_SECONDS = 0.1, 0.25, 0.03


def detector(name: DetectorName) -> Detector:
    """Return a detector.

    Raises:
        ConfigError: The name is unknown, or a package that it needs is not installed.
    """
    if name == "energy":
        return energy_spans
    if name == "silero":
        _silero()
        return silero_spans
    raise ConfigError(f"--vad must be energy or silero, not {name!r}")


def energy_spans(pcm: Pcm, rate: int = SAMPLE_RATE) -> list[Span]:
    """Spans in which the level of 20 ms exceeds -42 dBFS; fit for a codec's clean output."""
    return _loud_spans(_levels(pcm, rate), AUDIBLE_RMS)


def caller_spans(
    pcm: Pcm, rate: int = SAMPLE_RATE, peak_share: float = _CALLER_PEAK_SHARE
) -> list[Span]:
    """Spans of speech in a recording of any level, over steady noise.

    Args:
        pcm: float32 [n].
        rate: Its sample rate.
        peak_share: Share of the loudest speech that 20 ms of speech must exceed; more for noise
            that rises and falls.
    """
    levels = _levels(pcm, rate)
    if not len(levels):
        return []
    floor, peak = np.quantile(levels, (0.1, 0.97))
    threshold = max(peak_share * peak, min(_CALLER_FLOOR_RATIO * floor, 0.5 * peak))
    return _loud_spans(levels, max(float(threshold), 1e-4))


def _levels(pcm: Pcm, rate: int) -> npt.NDArray[np.float64]:
    """RMS of each 20 ms."""
    hop = round(_HOP_SECONDS * rate)
    hops = pcm[: len(pcm) // hop * hop].reshape(-1, hop)
    levels: npt.NDArray[np.float64] = np.sqrt(np.mean(np.square(hops, dtype=np.float64), axis=1))
    return levels


def _loud_spans(levels: npt.NDArray[np.float64], threshold: float) -> list[Span]:
    joined = merge(_runs(levels > threshold, _HOP_SECONDS), _GAP_SECONDS + 1e-6)
    return [span for span in joined if span.seconds >= _MIN_SECONDS - 1e-6]


def silero_spans(pcm: Pcm, rate: int = SAMPLE_RATE) -> list[Span]:
    """Spans that Silero's voice activity detector finds; needs onnxruntime.

    A sample rate other than 16 kHz is resampled. With ``rate`` 16,000, samples are taken as they
    are, even if they were recorded at another rate.
    """
    if rate != _SILERO_RATE:
        import soxr

        pcm = soxr.resample(pcm, rate, _SILERO_RATE).astype(np.float32)
    session = _silero()
    windows = -(-len(pcm) // _SILERO_WINDOW)
    padded = np.zeros(_SILERO_CONTEXT + windows * _SILERO_WINDOW, np.float32)
    padded[_SILERO_CONTEXT : _SILERO_CONTEXT + len(pcm)] = pcm
    state = np.zeros((2, 1, 128), np.float32)
    sample_rate = np.array(_SILERO_RATE, np.int64)
    speech = np.zeros(windows, np.bool_)
    active = False
    for index in range(windows):
        start = index * _SILERO_WINDOW
        chunk = padded[None, start : start + _SILERO_CONTEXT + _SILERO_WINDOW]
        output, state = session.run(None, {"input": chunk, "state": state, "sr": sample_rate})
        active = output.item() >= (_SILERO_OFF if active else _SILERO_ON)
        speech[index] = active
    window = _SILERO_WINDOW / _SILERO_RATE
    joined = merge(_runs(speech, window), _SILERO_GAP_SECONDS)
    end = len(pcm) / _SILERO_RATE
    return [
        Span(max(0.0, span.start - _SILERO_PAD_SECONDS), min(end, span.end + _SILERO_PAD_SECONDS))
        for span in joined
        if span.seconds >= _SILERO_MIN_SECONDS
    ]


def _runs(active: npt.NDArray[np.bool_], seconds: float) -> list[Span]:
    """Runs of True as spans; each element lasts ``seconds``."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False]))))
    # Rounded: 3 * 0.02 is 0.06 only up to the last bit.
    times = np.round(edges * seconds, 6).tolist()
    return [Span(start, end) for start, end in zip(times[::2], times[1::2], strict=True)]


@cache
def _silero() -> Any:
    """The network, from Pipecat's files or from the package silero-vad."""
    if find_spec("onnxruntime") is None:
        raise ConfigError(
            "--vad silero needs onnxruntime: pip install 'pipecat-personaplex[eval]', or use "
            "--vad energy"
        )
    import onnxruntime

    for package, file in (
        ("pipecat", "audio/vad/data/silero_vad.onnx"),
        ("silero_vad", "data/silero_vad.onnx"),
    ):
        spec = find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            path = Path(folder) / file
            if path.is_file():
                options = onnxruntime.SessionOptions()
                options.inter_op_num_threads = options.intra_op_num_threads = 1
                return onnxruntime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
    raise ConfigError(
        "--vad silero finds no silero_vad.onnx: pip install pipecat-ai or silero-vad, or use "
        "--vad energy"
    )
