"""What a user configures. Every class is frozen and validates its values on construction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from pipecat_personaplex.errors import ConfigError

_MAX_TOP_K = 1_000_000
_MAX_THREADS = 1_024
_MIN_CONTEXT = 64
_DEVICE = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?")

Quantization = Literal["int8", "fp8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
"""Low-bit formats of the transformers' weights."""
QuantizationChoice = Quantization | Literal["auto"]

AUTO_MODEL = "auto"
"""The model name that stands for the best model for this machine. A folder is ``./auto``."""

DEFAULT_MAX_SESSIONS = 8
"""Sessions at once if none is configured. A configured number may be larger."""


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    Example::

        config = EngineConfig(device="cuda:0", quantization="int8", max_sessions=16)
        engine = Engine.load("nvidia/personaplex-7b-v1", config)

    Attributes:
        adapter: A LoRA adapter in Kyutai's layout to merge into the weights while they are loaded:
            a safetensors file, a folder, or a Hugging Face repo id, with ``@revision`` if wanted.
            It replaces an adapter that the checkpoint names. The default is empty: none.
        device: Device of the model: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. The default
            ``"auto"`` takes CUDA if available, else the CPU.
        dtype: Type of the language model's weights and activations: ``"float32"`` or
            ``"bfloat16"``. The default ``"auto"`` takes bfloat16 on CUDA and float32 on a CPU.
            The codec is always float32.
        quantization: Format of the transformers' weights: ``"int8"`` or ``"fp8"`` (8 bits), or
            ``"int4"`` (4 bits; the depth transformer stays at 8). None takes the format of the
            checkpoint: ``dtype`` for the release, and the stored format for a folder written by
            ``personaplex quantize``. The default ``"auto"`` takes the same if it fits into the
            device's free memory, else int8, else int4, and logs the reason.
        kv_dtype: Type of the language model's stored keys and values: ``"float32"``,
            ``"bfloat16"`` or ``"fp8"`` (e4m3 with one scale per token and head). The default
            ``"auto"`` takes the model's type, but bfloat16 with low-bit weights on a CPU that
            multiplies it. fp8 needs a little over half the memory of
            bfloat16, so nearly twice the sessions fit; on CUDA it requires compute capability
            8.9 or more.
        context: Positions (frames of 80 ms) of the attention context, at least 64. A session
            attends to ``context - 1`` frames and forgets older ones; ``keep_persona`` computes the
            prompt again before that. A smaller context needs less memory per session. The default
            0 takes the ``context`` of the checkpoint's ``config.json``.
        max_sessions: Slots, that is sessions at once. The default 0 takes
            ``DEFAULT_MAX_SESSIONS``, or as many as fit into the device's free memory if those
            are fewer.
        max_queued_frames: Input frames (80 ms) that may wait in one session. On overflow the
            oldest frame is dropped and counted. The default is 25, two seconds.
        prefix_cache_bytes: Upper bound, in bytes, on the memory of cached prompts. A session
            whose voice and text prompt are cached starts without prefill. The default is 2 GiB,
            less on a CUDA device with less room; 0 caches nothing.
        prefill_chunk: Prompt frames computed between two steps. Smaller chunks delay running
            sessions less; larger ones complete the prompt sooner. The default is 256.
        cpu_threads: Threads of the model on a CPU. The default 0 takes one for a small model,
            which more threads only slow down, and PyTorch's choice for others.
        cuda_graphs: Whether CUDA captures each step as one graph at the start and replays it,
            which is much faster. A step that cannot be captured runs eagerly, and a warning
            gives the reason. The default is True.
        keep_persona: Whether a call remembers its persona beyond the context. When the context is
            nearly full, the prompt and up to half of a context of the newest frames (fewer after a
            long prompt) are computed again beside the call. It applies to prompts shorter than half
            of the context. The default is True; False forgets the oldest frames, the prompt first,
            as NVIDIA's code does.
        dc_blocker: Whether a high-pass at 20 Hz removes the DC offset of a caller's sound card and
            rumble before the codec. The default None does as the checkpoint says: nano has one,
            the release has none, so that its tokens equal those of NVIDIA's code.

    Raises:
        ConfigError: A value is of the wrong type or out of range.
    """

    adapter: str = ""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantization: QuantizationChoice | None = "auto"
    kv_dtype: Literal["auto", "float32", "bfloat16", "fp8"] = "auto"
    context: int = 0
    max_sessions: int = 0
    max_queued_frames: int = 25
    prefix_cache_bytes: int = 2 << 30
    prefill_chunk: int = 256
    cpu_threads: int = 0
    cuda_graphs: bool = True
    keep_persona: bool = True
    dc_blocker: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, str):
            raise ConfigError(f"adapter must be text, not {self.adapter!r}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype must be auto, float32 or bfloat16, not {self.dtype!r}")
        if self.quantization not in (None, "auto", *QUANTIZATIONS):
            raise ConfigError(
                f"quantization must be auto, {', '.join(QUANTIZATIONS)} or none, "
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
        for name in ("cuda_graphs", "keep_persona"):
            flag = getattr(self, name)
            if type(flag) is not bool:
                raise ConfigError(f"{name} must be true or false, not {flag!r}")
        if self.dc_blocker is not None and type(self.dc_blocker) is not bool:
            raise ConfigError(f"dc_blocker must be true, false or none, not {self.dc_blocker!r}")
        if type(self.cpu_threads) is not int or not 0 <= self.cpu_threads <= _MAX_THREADS:
            raise ConfigError(
                f"cpu_threads must be an integer from 0 to {_MAX_THREADS}, not {self.cpu_threads!r}"
            )
        for name, least in (
            ("max_sessions", 0),
            ("max_queued_frames", 1),
            ("prefix_cache_bytes", 0),
            ("prefill_chunk", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ConfigError(f"{name} must be an integer of at least {least}, not {value!r}")


@dataclass(frozen=True)
class SamplingParams:
    """How a session samples its tokens.

    Example::

        session.update(SamplingParams(seed=7, temperature_audio=0.6))

    Attributes:
        seed: Seed of the sampling noise, from 0 to 2**63 - 1. The same seed, persona and input
            audio give the same conversation. The default is 0.
        temperature_audio: Temperature of the agent's audio codes, from 0 to 10. The default is
            0.8; 0 takes the most likely code (greedy).
        temperature_text: Temperature of the text tokens (the inner monologue), from 0 to 10. The
            default is 0.7; 0 takes the most likely token (greedy).
        top_k_audio: Candidates for each audio code: the k most likely. The default is 250.
        top_k_text: Candidates for each text token: the k most likely. The default is 25.

    Raises:
        ConfigError: A value is of the wrong type or out of range.
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
        """Parameters that always take the most likely token."""
        return cls(temperature_audio=0.0, temperature_text=0.0)


@dataclass(frozen=True)
class Persona:
    """Who the agent is: how it sounds, and which role it plays.

    Example::

        persona = Persona(voice="NATF2", text_prompt="You enjoy having a good conversation.")

    Attributes:
        voice: Name of a voice in ``Engine.voices``: a preset of the checkpoint, or one added
            with ``Engine.add_voice``.
        text_prompt: The role, in plain words. The default is empty: no role.

    Raises:
        ConfigError: A value is not text.
    """

    voice: str
    text_prompt: str = ""

    def __post_init__(self) -> None:
        for name in ("voice", "text_prompt"):
            checked_text(name, getattr(self, name))


def checked_text(what: str, text: str) -> str:
    """Return a text that comes from outside.

    Args:
        what: Name of the text for the error message.
        text: The text.

    Raises:
        ConfigError: It is not text, or holds half of a surrogate pair, which neither the tokenizer
            nor a message can represent: text that was decoded wrongly has them.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} must be text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} is not valid text: character {error.start} is half of a surrogate pair; "
            "decode it as UTF-8"
        ) from None
    return text


def checked_persona(persona: Persona) -> Persona:
    """Return the persona.

    Raises:
        ConfigError: It is not a ``Persona``.
    """
    if not isinstance(persona, Persona):
        raise ConfigError(
            f"persona must be a Persona (voice and text_prompt), not {type(persona).__name__}"
        )
    return persona


def checked_sampling(sampling: SamplingParams) -> SamplingParams:
    """Return the parameters.

    Raises:
        ConfigError: They are not ``SamplingParams``.
    """
    if not isinstance(sampling, SamplingParams):
        raise ConfigError(f"sampling must be SamplingParams, not {type(sampling).__name__}")
    return sampling
