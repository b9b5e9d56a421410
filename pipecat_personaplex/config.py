"""The model's fixed numbers, and what a user configures: frozen, strict, checked where made."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from pipecat_personaplex.errors import ConfigError

_MAX_TOP_K = 1_000_000
_MIN_CONTEXT = 64
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")

Quantization = Literal["int8", "fp8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""How the transformers' weights can be kept instead of in floating point."""


AUTO_MODEL = "auto"
"""Stands for the best model for a machine; ``./auto`` is a folder."""

DEFAULT_MAX_SESSIONS = 8
"""Callers at once where nobody says how many; a number that is given may be larger."""


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    Attributes:
        device: ``"auto"`` (CUDA where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: Of the language model: ``"auto"`` (bfloat16 on CUDA, float32 on CPU),
            ``"float32"`` or ``"bfloat16"``. The codec is always float32.
        quantization: Keeps the transformers' weights at 8 bits, ``"int8"`` or ``"fp8"``, or at
            4, ``"int4"`` (the depth transformer's at 8). A saved folder of such weights needs
            none.
        kv_dtype: In which the language model's keys and values are kept: ``"auto"`` (its dtype),
            ``"float32"``, ``"bfloat16"`` or ``"fp8"`` (e4m3 with a scale for each token and head):
            a little over half of bfloat16's memory, so nearly twice the callers; on CUDA from
            compute capability 8.9 on.
        context: Frames of 80 ms that a caller's memory is made for, as in ``config.json``; 0
            takes the checkpoint's, and fewer make room for more callers. What is longer ago, the
            persona included, is forgotten.
        max_sessions: Slots, that is callers at once; 0 takes as many as the device's free memory
            holds, ``DEFAULT_MAX_SESSIONS`` at most.
        max_queued_frames: Input a session may have waiting, in frames of 80 ms; past it the
            oldest frame is dropped and counted.
        prefix_cache_bytes: Bound on the memory of prompts kept for the next caller with the
            same voice and text.
        prefill_chunk: Prompt frames computed between two steps. Shorter runs disturb running
            calls less, longer ones are done sooner.
        cpu_threads: Threads of the model on a CPU; 0 takes one for a small model, which more
            only slow down, and torch's choice for others.
        cuda_graphs: On CUDA, launch each step as one graph, captured at the start; where that
            fails, steps run without and a warning says why.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: Quantization | None = None
    kv_dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    context: int = 0
    max_sessions: int = 0
    max_queued_frames: int = 25
    prefix_cache_bytes: int = 2 << 30
    prefill_chunk: int = 256
    cpu_threads: int = 0
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, not {self.dtype!r}")
        if self.quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(
                f"quantization must be {', '.join(QUANTIZATIONS)} or none, "
                f"not {self.quantization!r}"
            )
        if self.kv_dtype not in ("auto", "float32", "bfloat16", "fp8"):
            raise ConfigError(
                f"kv_dtype must be auto, float32, bfloat16 or fp8, not {self.kv_dtype!r}"
            )
        if not isinstance(self.device, str) or not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, not {self.device!r}")
        if type(self.context) is not int or (self.context != 0 and self.context < _MIN_CONTEXT):
            raise ConfigError(
                f"context must be 0 (the checkpoint's) or at least {_MIN_CONTEXT} frames, not "
                f"{self.context!r}"
            )
        if type(self.cuda_graphs) is not bool:
            raise ConfigError(f"cuda_graphs must be true or false, not {self.cuda_graphs!r}")
        for name, least in (
            ("max_sessions", 0),
            ("max_queued_frames", 1),
            ("prefix_cache_bytes", 0),
            ("prefill_chunk", 1),
            ("cpu_threads", 0),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")


@dataclass(frozen=True)
class SamplingParams:
    """How a session draws its tokens. A temperature of 0 is greedy.

    Attributes:
        seed: Keys the noise: the same seed, persona and audio give the same conversation.
        temperature_audio: Of the agent's audio codes.
        temperature_text: Of the inner monologue.
        top_k_audio: Candidates kept for each audio code.
        top_k_text: Candidates kept for each text token.
    """

    seed: int = 0
    temperature_audio: float = 0.8
    temperature_text: float = 0.7
    top_k_audio: int = 250
    top_k_text: int = 25

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be an integer from 0 to 2**63 - 1, not {self.seed!r}")
        for name in ("temperature_audio", "temperature_text"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{name} must be a number, not {value!r}")
            if not 0 <= value <= 10:
                raise ConfigError(f"{name} must be from 0 (greedy) to 10, not {value!r}")
        for name in ("top_k_audio", "top_k_text"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _MAX_TOP_K:
                raise ConfigError(
                    f"{name} must be an integer from 1 to {_MAX_TOP_K}, not {value!r}"
                )

    @classmethod
    def greedy(cls) -> SamplingParams:
        """Always the likeliest token."""
        return cls(temperature_audio=0.0, temperature_text=0.0)


@dataclass(frozen=True)
class Persona:
    """Who the agent is.

    Attributes:
        voice: A preset's name, as in ``Engine.voices``, or one added with ``Engine.add_voice``.
        text_prompt: The role, in plain words; empty means none.
    """

    voice: str
    text_prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("voice", "text_prompt"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be text, not {getattr(self, name)!r}")
