"""How much low-bit weights, keys and values change a model's predictions, by teacher forcing.

The float32 model samples a conversation. The same model, in the precision it is to be served in,
then gets the same tokens at every frame, and its logits are compared with those of the float32
model. Its keys and values are its own throughout, so errors that accumulate in them show as growth
from the first frames to the last.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.bench.measurements import Echo
from pipecat_personaplex.bench.models import load_model, read_architecture
from pipecat_personaplex.bench.teacher_forcing import ReferenceRun, TeacherForcedModel
from pipecat_personaplex.checkpoint.progress_bars import Progress
from pipecat_personaplex.config import EngineConfig, Quantization, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.engine.sampling import SamplerState
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.device import resolve_kv_dtype, resolve_target
from pipecat_personaplex.quantization.fp8 import FP8

STREAM_NAMES = ("text", *(f"audio {book}" for book in range(CODEBOOKS)))
_SEGMENTS = 10
"""Error growth compares the first and the last of this many equal segments."""


@dataclass(frozen=True)
class DriftOptions:
    """What to compare.

    Attributes:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        frames: Length of the conversation, in frames of 80 ms.
        user: The caller's audio, float32 [n] mono 24 kHz, repeated as needed; None is silence.
        engine: How the model is to be served: device, precisions, context, threads. The reference
            is the same model in float32 with its whole context.
        seed: Seed of the sampled conversation.

    Raises:
        ConfigError: A value is out of its range.

    Example::

        engine = EngineConfig(device="cpu", quantization="int8")
        report = run(DriftOptions("random-1b", frames=20, engine=engine), print)
    """

    model: str
    frames: int = 1_500
    user: Pcm | None = field(default=None, repr=False)
    engine: EngineConfig = field(default_factory=EngineConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        SamplingParams(seed=self.seed)
        if self.frames < 2 * _SEGMENTS:
            raise ConfigError(f"frames must be at least {2 * _SEGMENTS}, not {self.frames}")


class DriftMetrics(NamedTuple):
    """Differences at each frame in each stream (text, then the 8 codebooks).

    Attributes:
        logit_error: RMS error of the logits over the standard deviation of the reference's.
        same_top1: 1 if both prefer the same token, else 0.
        kl: KL divergence of the two distributions, in nats.
    """

    logit_error: npt.NDArray[np.float64]  # [frames, 9]
    same_top1: npt.NDArray[np.float64]  # [frames, 9]
    kl: npt.NDArray[np.float64]  # [frames, 9]


def _ignore() -> None:
    pass


def record(options: DriftOptions, on_frame: Callable[[], object] = _ignore) -> ReferenceRun:
    """Sample the conversation with the float32 model, as an engine would.

    Args:
        options: What to compare.
        on_frame: Called after each frame.
    """
    plain = replace(options.engine, dtype="float32", kv_dtype="auto", quantization=None, context=0)
    model = load_model(options.model, plain)
    device = model.device
    user_codes = encode_stream(model.mimi, _user_audio(options).to(device))  # [frames, 8]
    sampler = SamplerState(1, model.config.lm, device)
    sampler.set(0, SamplingParams(seed=options.seed))
    forced, batch = TeacherForcedModel(model), Batch.of([0], device)
    all_logits, texts, codes = [], [], []
    for index, frame in enumerate(user_codes):
        sample = sampler.frame(batch, torch.tensor([index], device=device))
        logits, text, code = forced.step(frame[None], sample.text, sample.audio)
        all_logits.append(logits)
        texts.append(text)
        codes.append(code)
        on_frame()
    return ReferenceRun(user_codes, torch.cat(texts), torch.cat(codes), all_logits)


def compare(
    reference: ReferenceRun, options: DriftOptions, on_frame: Callable[[], object] = _ignore
) -> DriftMetrics:
    """Run the model as it is to be served through the tokens of the reference.

    Args:
        reference: The conversation of the float32 model.
        options: What to compare.
        on_frame: Called after each frame.
    """
    model = load_model(options.model, options.engine)
    forced = TeacherForcedModel(model)
    values = np.empty((3, len(reference.logits), len(STREAM_NAMES)))
    for index, expected in enumerate(reference.logits):
        text = reference.text[index : index + 1].to(model.device)
        codes = reference.codes[index].to(model.device)
        logits, _, _ = forced.step(
            reference.user_codes[index][None].to(model.device),
            lambda _, text=text: text,  # type: ignore[misc]
            lambda book, _, codes=codes: codes[book : book + 1],  # type: ignore[misc]
        )
        pairs = zip(logits.streams(), expected.streams(), strict=True)
        values[:, index] = np.transpose([_difference(*pair) for pair in pairs])
        on_frame()
    return DriftMetrics(*values)


def _difference(logits: Tensor, expected: Tensor) -> tuple[float, bool, float]:
    """Return the values of ``DriftMetrics`` for one frame of one stream."""
    error = (logits - expected).square().mean().sqrt() / expected.std()
    same = bool(logits.argmax() == expected.argmax())
    divergence = F.kl_div(
        logits.log_softmax(0), expected.log_softmax(0), log_target=True, reduction="sum"
    )
    return float(error), same, float(divergence)


def _user_audio(options: DriftOptions) -> Tensor:
    samples = options.frames * FRAME_SAMPLES
    if options.user is None:
        return torch.zeros(samples)
    return torch.from_numpy(np.resize(options.user, samples))


@dataclass(frozen=True)
class _Precision:
    """How the model is to be served, with every ``"auto"`` resolved."""

    dtype: str
    quantization: Quantization | None
    kv_dtype: str
    context: int

    @classmethod
    def of(cls, options: DriftOptions) -> _Precision:
        """Resolve the options before any weights are loaded.

        Raises:
            ConfigError: The checkpoint's weights are low-bit already, or nothing would differ.
        """
        engine = options.engine
        assert engine.quantization != "auto", "run resolves it"
        architecture = read_architecture(options.model)
        if (stored := architecture.quantization) is not None:
            raise ConfigError(
                f"{options.model} holds {stored} weights, and drift compares with "
                "float32; give it the release they were made from, with "
                f"--quantization {stored}"
            )
        target = resolve_target(engine.device, engine.dtype, engine.quantization)
        kv_dtype = resolve_kv_dtype(
            engine.kv_dtype, target.dtype, target.device, engine.quantization
        )
        shorter = architecture.with_options(engine) != architecture
        precision = cls(
            str(target.dtype).removeprefix("torch."),
            engine.quantization,
            "fp8" if kv_dtype == FP8 else str(kv_dtype).removeprefix("torch."),
            engine.context if shorter else 0,
        )
        if precision == cls("float32", None, "float32", 0):
            raise ConfigError(
                "nothing differs from float32 with the whole context, on this device; choose what "
                "to compare: --quantization, --kv-dtype, --dtype or --context"
            )
        return precision

    def __str__(self) -> str:
        parts = [self.quantization or self.dtype]
        if self.kv_dtype != self.dtype:
            parts.append(f"keys and values in {self.kv_dtype}")
        if self.context:
            parts.append(f"context {self.context}")
        return ", ".join(parts)


def run(options: DriftOptions, echo: Echo, progress: Progress | None = None) -> dict[str, Any]:
    """Compare the two models and report the differences.

    Args:
        options: What to compare.
        echo: Prints one line of results.
        progress: Called after each frame with the frames done and the frames in all. The
            conversation and its comparison both count.

    Returns:
        The report, which the command prints as its last line.

    Raises:
        ConfigError: The options leave nothing to compare, or the checkpoint is low-bit already.
        CheckpointError: The model cannot be loaded.
    """
    if options.engine.quantization == "auto":  # compare what is requested, whatever fits
        options = replace(options, engine=replace(options.engine, quantization=None))
    precision = _Precision.of(options)
    done = count(1)

    def on_frame() -> None:
        if progress is not None:
            progress(next(done), 2 * options.frames)

    reference = record(options, on_frame)
    # Free the float32 model first: two 7B models may not fit into memory together.
    gc.collect()
    metrics = compare(reference, options, on_frame)
    echo(f"{options.model}: {precision} against float32, {options.frames} frames, teacher-forced")
    return {
        "model": options.model,
        **asdict(precision),
        "frames": options.frames,
        "seed": options.seed,
        "streams": _summarize(metrics, echo),
    }


def _summarize(metrics: DriftMetrics, echo: Echo) -> dict[str, dict[str, float]]:
    """Average the metrics over the conversation; print and return a row for each stream."""
    segment = len(metrics.logit_error) // _SEGMENTS
    echo(f"{'stream':8}   logit error   same top-1   divergence   error: first -> last tenth")
    streams: dict[str, dict[str, float]] = {}
    for index, name in enumerate(STREAM_NAMES):
        error = metrics.logit_error[:, index]
        row = {
            "logit_error": float(error.mean()),
            "top1_agreement": float(metrics.same_top1[:, index].mean()),
            "kl": float(metrics.kl[:, index].mean()),
            "first_error": float(error[:segment].mean()),
            "last_error": float(error[-segment:].mean()),
        }
        echo(
            f"{name:8}   {row['logit_error']:11.4%}   {row['top1_agreement']:10.2%}   "
            f"{row['kl']:10.6f}   {row['first_error']:.4%} -> {row['last_error']:.4%}"
        )
        streams[name] = row
    return streams
