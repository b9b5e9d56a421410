"""How far low-bit weights, keys and values take a model from itself: teacher-forced.

The model in float32 holds a conversation. The same model as it is to be served then gets the same
tokens at every position, whatever it would have chosen itself, and what it thinks of each next
token is compared. Its keys and values are its own throughout, so errors that add up in them show
as growth from the first frames to the last.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipecat_personaplex.audio import read_audio
from pipecat_personaplex.bench.models import load_subject, read_architecture
from pipecat_personaplex.checkpoint.loader import loading_bar
from pipecat_personaplex.config import EngineConfig, Quantization, SamplingParams
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.sampling import SamplerState
from pipecat_personaplex.engine.token_grid import TokenGrid
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.device import resolve_kv_dtype, resolve_target
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.quantization.fp8 import FP8

STREAM_NAMES = ("text", *(f"audio {book}" for book in range(CODEBOOKS)))
_ENDS = 10
"""Growth compares the last part of the conversation with the first: one in so many frames."""

Figures = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DriftOptions:
    """What to compare.

    Attributes:
        model: A folder, a repo id, ``"random-1b"`` or ``"random-7b"``.
        frames: Length of the conversation.
        user: A recording of the caller, repeated as needed; None for silence.
        engine: How the model is to be served: device, precisions, context, threads. It is compared
            with itself in float32, nothing in low bits and nothing forgotten.
        seed: Of the conversation.
    """

    model: str
    frames: int = 1_500
    user: Path | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        SamplingParams(seed=self.seed)
        if self.frames < 2 * _ENDS:
            raise ConfigError(f"frames must be at least {2 * _ENDS}, not {self.frames}")


@dataclass(frozen=True)
class Opinion:
    """What a model thinks of one position's next tokens: logits of text and of each codebook."""

    text: Tensor  # float32 [text_card]
    audio: Tensor  # float32 [8, card]

    def streams(self) -> list[Tensor]:
        """Of each stream, text first."""
        return [self.text, *self.audio]


class Thinker:
    """Steps one model through a conversation, and keeps what it thinks.

    Args:
        config: The model's.
        lm: On its device.
        kv_dtype: In which keys and values are kept; the model's own if not given.
    """

    def __init__(self, config: ModelConfig, lm: PersonaPlexLM, kv_dtype: torch.dtype | None = None):
        self._lm = lm
        self._device = lm.text_emb.weight.device
        self._batch = Batch.of([0], self._device)
        self._ring = RingCache.for_lm(
            lm, 1, self._device, window=config.lm.window, kv_dtype=kv_dtype
        )
        self._grid = TokenGrid(1, config, self._device)
        self._grid.start(0, initial_column(config).to(self._device))
        self._position = 0

    @torch.inference_mode()
    def step(
        self,
        user_codes: Tensor,
        choose_text: Callable[[Tensor], Tensor],
        choose_code: Callable[[int, Tensor], Tensor],
    ) -> tuple[Opinion, Tensor, Tensor]:
        """Run one position.

        Args:
            user_codes: The caller's, [1, 8].
            choose_text: From float32 [1, text_card] to [1].
            choose_code: From a codebook and float32 [1, card] to [1].

        Returns:
            What the model thinks, and the text [1] and codes [1, 8] that were chosen.
        """
        rows = self._batch.rows
        column = self._grid.input_column(rows, user_codes)
        place = torch.tensor([self._position], device=self._device)
        kv = self._ring.at(self._batch, [self._position], place)
        hidden = self._lm(self._lm.embed(column)[:, None], place[:, None], kv)[:, 0]
        text_logits = self._lm.text_logits(hidden)
        text = choose_text(text_logits)
        audio_logits: list[Tensor] = []

        def choose(codebook: int, logits: Tensor) -> Tensor:
            logits = logits.float()
            audio_logits.append(logits[0])
            return choose_code(codebook, logits)

        codes = self._lm.depth(hidden, text, choose)
        self._grid.advance(rows, column, text, codes, user_codes)
        self._position += 1
        return Opinion(text_logits[0].cpu(), torch.stack(audio_logits).cpu()), text, codes


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Lesson:
    """A conversation in float32: what was chosen at each position, and what was thought of it."""

    user_codes: Tensor  # [frames, 8]
    text: Tensor  # [frames]
    codes: Tensor  # [frames, 8]
    opinions: list[Opinion]


def teach(options: DriftOptions, advance: Callable[[], object] = _nothing) -> Lesson:
    """Hold the conversation in float32, drawing tokens as a call does.

    Args:
        options: What to compare.
        advance: Called after each frame.
    """
    plain = replace(options.engine, dtype="float32", quantization=None)
    subject = load_subject(options.model, plain)
    device = subject.lm.text_emb.weight.device
    user_codes = encode_stream(subject.mimi, _user_audio(options).to(device))
    sampler = SamplerState(1, subject.config.lm, device)
    sampler.set(0, SamplingParams(seed=options.seed))
    thinker, batch = Thinker(subject.config, subject.lm), Batch.of([0], device)
    opinions, texts, codes = [], [], []
    for index, frame in enumerate(user_codes):
        draw = sampler.frame(batch, torch.tensor([index], device=device))
        opinion, text, code = thinker.step(frame[None], draw.text, draw.audio)
        opinions.append(opinion)
        texts.append(text)
        codes.append(code)
        advance()
    return Lesson(user_codes, torch.cat(texts), torch.cat(codes), opinions)


def examine(
    lesson: Lesson, options: DriftOptions, advance: Callable[[], object] = _nothing
) -> Figures:
    """Put the model as it is served through the same tokens.

    Args:
        lesson: The conversation.
        options: What to compare.
        advance: Called after each frame.

    Returns:
        [frames, 9 streams, 3]: error of the logits relative to their spread, whether the
        likeliest token is the same, and the divergence (KL, nats) of the distributions.
    """
    subject = load_subject(options.model, options.engine)
    device = subject.lm.text_emb.weight.device
    thinker = Thinker(
        subject.config.with_context(options.engine.context),
        subject.lm,
        resolve_kv_dtype(options.engine.kv_dtype, subject.lm.dtype, device),
    )
    figures = np.empty((len(lesson.opinions), len(STREAM_NAMES), 3))
    for index, expected in enumerate(lesson.opinions):
        text, codes = lesson.text[index : index + 1], lesson.codes[index].to(device)
        opinion, _, _ = thinker.step(
            lesson.user_codes[index][None].to(device),
            lambda _, text=text: text.to(device),  # type: ignore[misc]
            lambda book, _, codes=codes: codes[book : book + 1],  # type: ignore[misc]
        )
        pairs = zip(opinion.streams(), expected.streams(), strict=True)
        figures[index] = [_compare(logits, wanted) for logits, wanted in pairs]
        advance()
    return figures


def _compare(logits: Tensor, wanted: Tensor) -> tuple[float, bool, float]:
    error = (logits - wanted).square().mean().sqrt() / wanted.std()
    same = bool(logits.argmax() == wanted.argmax())
    divergence = F.kl_div(
        logits.log_softmax(0), wanted.log_softmax(0), log_target=True, reduction="sum"
    )
    return float(error), same, float(divergence)


def _user_audio(options: DriftOptions) -> Tensor:
    samples = options.frames * FRAME_SAMPLES
    if options.user is None:
        return torch.zeros(samples)
    return torch.from_numpy(np.resize(read_audio(options.user), samples))


@dataclass(frozen=True)
class _Served:
    """How the model is to be served, each word of the configuration resolved."""

    dtype: str
    quantization: Quantization | None
    kv_dtype: str
    context: int

    @classmethod
    def of(cls, options: DriftOptions) -> _Served:
        """What the options say, before anything is loaded.

        Raises:
            ConfigError: The model's weights are low-bit themselves, or nothing would differ.
        """
        engine = options.engine
        whole = read_architecture(options.model)
        if (stored := whole.quantization) is not None:
            raise ConfigError(
                f"{options.model} holds {stored} weights, and drift compares with "
                "float32; give it the release they were made from, with "
                f"--quantization {stored}"
            )
        target = resolve_target(engine.device, engine.dtype, engine.quantization)
        kept = resolve_kv_dtype(engine.kv_dtype, target.dtype, target.device)
        served = cls(
            str(target.dtype).removeprefix("torch."),
            engine.quantization,
            "fp8" if kept == FP8 else str(kept).removeprefix("torch."),
            engine.context if whole.with_context(engine.context) != whole else 0,
        )
        if served == cls("float32", None, "float32", 0):
            raise ConfigError(
                "nothing differs from float32 with the whole context, on this device; choose what "
                "to compare: --quantization, --kv-dtype, --dtype or --context"
            )
        return served

    def __str__(self) -> str:
        parts = [self.quantization or self.dtype]
        if self.kv_dtype != self.dtype:
            parts.append(f"keys and values in {self.kv_dtype}")
        if self.context:
            parts.append(f"context {self.context}")
        return ", ".join(parts)


def run(
    options: DriftOptions, say: Callable[[str], None], *, progress: bool = False
) -> dict[str, Any]:
    """Compare and report.

    Args:
        options: What to compare.
        say: Takes lines for a person.
        progress: Whether to show on the terminal how far it is.

    Returns:
        The report that the command prints as its last line.

    Raises:
        ConfigError: There is nothing to compare, or not with these options.
    """
    served = _Served.of(options)
    done = count(1)
    with loading_bar(progress, "comparing") as advanced:

        def advance() -> None:
            if advanced is not None:
                advanced(next(done), 2 * options.frames)

        lesson = teach(options, advance)
        # Two 7B models at once would not fit where one does.
        gc.collect()
        figures = examine(lesson, options, advance)
    say(f"{options.model}: {served} against float32, {options.frames} frames, teacher-forced")
    say(f"{'stream':8}   logit error   same top-1   divergence   error: first -> last tenth")
    tenth = options.frames // _ENDS
    streams: dict[str, dict[str, float]] = {}
    for name, (error, same, divergence), first, last in zip(
        STREAM_NAMES,
        figures.mean(axis=0),
        figures[:tenth, :, 0].mean(axis=0),
        figures[-tenth:, :, 0].mean(axis=0),
        strict=True,
    ):
        say(
            f"{name:8}   {error:11.4%}   {same:10.2%}   {divergence:10.6f}   "
            f"{first:.4%} -> {last:.4%}"
        )
        streams[name] = {
            "logit_error": float(error),
            "top1_agreement": float(same),
            "kl": float(divergence),
            "first_error": float(first),
            "last_error": float(last),
        }
    return {
        "model": options.model,
        **asdict(served),
        "frames": options.frames,
        "seed": options.seed,
        "streams": streams,
    }
