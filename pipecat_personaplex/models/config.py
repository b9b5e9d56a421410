"""A checkpoint's architecture, read from its ``config.json``.

The sections ``lm`` and ``mimi`` override the values of the released 7B model. Keys that the code
reads become fields; keys that describe the one implemented architecture are accepted with that
value only (``_FIXED``); all others are errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipecat_personaplex.config import QUANTIZATIONS, EngineConfig, Quantization
from pipecat_personaplex.constants import CODEBOOKS, DELAYS, FRAME_SAMPLES, TEXT_PAD
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config_checks import (
    reject_unknown,
    require_fixed,
    require_in_range,
    typed,
)


@dataclass(frozen=True)
class LMConfig:
    """Architecture of the language model.

    The defaults are those of ``nvidia/personaplex-7b-v1`` and have the names of its
    ``config.json``. ``card`` and ``text_card`` are vocabulary sizes, ``dep_q`` is the number of
    depth steps in the checkpoint.
    """

    dim: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    hidden_scale: float = 4.125
    context: int = 3000
    max_period: float = 10_000.0
    text_card: int = 32_000
    card: int = 2048
    dep_q: int = 16
    depformer_dim: int = 1024
    depformer_dim_feedforward: int = 4224
    depformer_num_heads: int = 16
    depformer_num_layers: int = 6

    _FIXED: ClassVar[Any] = {
        "existing_text_padding_id": TEXT_PAD,
        "n_q": 2 * CODEBOOKS,
        "causal": True,
        "layer_scale": None,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_causal": True,
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_max_period": 10_000,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "delays": list(DELAYS),
    }
    # Present in released files, without effect on the computation.
    _IGNORED: ClassVar[Any] = ("depformer_context",)

    def __post_init__(self) -> None:
        require_in_range(self, "lm")
        for name, dim, heads in (
            ("lm.dim", self.dim, self.num_heads),
            ("lm.depformer_dim", self.depformer_dim, self.depformer_num_heads),
        ):
            if dim % heads or (dim // heads) % 2:
                raise ConfigError(
                    f"config.json: {name} {dim} must split into {heads} heads of even size"
                )
        if self.dep_q not in (CODEBOOKS, 2 * CODEBOOKS):
            raise ConfigError(f"config.json: lm.dep_q is {self.dep_q}; expected 8 or 16")
        if self.text_card > 1 << 15:
            raise ConfigError(
                f"config.json: lm.text_card is {self.text_card}; expected at most {1 << 15}, since "
                "the frames of a call are stored as 16-bit numbers"
            )
        if self.context < 2:
            raise ConfigError(f"config.json: lm.context is {self.context}; expected at least 2")

    @classmethod
    def keys(cls) -> frozenset[str]:
        """Every key that describes the language model in a ``config.json``."""
        fields = {spec.name for spec in dataclasses.fields(cls)}
        return frozenset({*fields, *cls._FIXED, *cls._IGNORED})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LMConfig:
        """Read the ``lm`` section of a ``config.json``; see ``ModelConfig.from_dict``."""
        reject_unknown("lm", values, set(cls.keys()))
        require_fixed("lm", values, cls._FIXED)
        return cls(**typed(cls, "lm", values))

    @property
    def window(self) -> int:
        """Frames attended to: the reference masks the oldest of its ``context`` ring entries."""
        return self.context - 1

    @property
    def hidden(self) -> int:
        """Width of the temporal transformer's gated MLP."""
        return 2 * int(self.hidden_scale * self.dim) // 3

    @property
    def depformer_hidden(self) -> int:
        """Width of the depth transformer's gated MLP."""
        return 2 * self.depformer_dim_feedforward // 3


@dataclass(frozen=True)
class MimiConfig:
    """Architecture of the codec. The defaults are those of the released Mimi.

    ``ratios`` are upsampling factors in the decoder's order, ``context`` counts latents of 40 ms.
    """

    dimension: int = 512
    n_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 3
    compress: int = 2
    num_heads: int = 8
    num_layers: int = 8
    dim_feedforward: int = 2048
    context: int = 250
    max_period: float = 10_000.0
    codebook_dim: int = 256
    bins: int = 2048

    _FIXED: ClassVar[Any] = {
        "seanet": {
            "channels": 1,
            "causal": True,
            "n_residual_layers": 1,
            "activation": "ELU",
            "dilation_base": 2,
            "disable_norm_outer_blocks": 0,
            "norm": "none",
            "pad_mode": "constant",
            "true_skip": True,
        },
        "transformer": {
            "causal": True,
            "layer_scale": 0.01,
            "conv_layout": True,
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
        },
    }
    _SECTIONS: ClassVar[Any] = {
        "seanet": {
            "dimension",
            "n_filters",
            "ratios",
            "kernel_size",
            "residual_kernel_size",
            "last_kernel_size",
            "compress",
        },
        "transformer": {
            "d_model",
            "num_heads",
            "num_layers",
            "dim_feedforward",
            "context",
            "max_period",
            "input_dimension",
            "output_dimensions",
        },
        # A file may store more codebooks (n_q) than the eight that are loaded.
        "quantizer": {"dimension", "n_q", "bins", "input_dimension", "output_dimension"},
    }

    # Keys of a config.json that repeat the codec's dimension.
    _SAME_DIMENSION: ClassVar[Any] = {
        "transformer": ("d_model", "input_dimension", "output_dimensions"),
        "quantizer": ("input_dimension", "output_dimension"),
    }

    def __post_init__(self) -> None:
        require_in_range(self, "mimi")
        samples = 2
        for ratio in self.ratios:
            samples *= ratio
        if samples != FRAME_SAMPLES:
            raise ConfigError(
                f"config.json: mimi.seanet.ratios {list(self.ratios)} give {samples} samples a "
                f"frame; expected {FRAME_SAMPLES}"
            )
        if min(self.kernel_size, self.residual_kernel_size, self.last_kernel_size) < 2:
            raise ConfigError("config.json: mimi.seanet's kernels must have at least 2 taps")
        if self.context < 4:
            raise ConfigError(f"config.json: mimi context is {self.context}; expected at least 4")
        if self.dimension % self.num_heads or (self.dimension // self.num_heads) % 2:
            raise ConfigError(
                f"config.json: mimi dimension {self.dimension} must split into {self.num_heads} "
                "heads of even size"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MimiConfig:
        """Read the ``mimi`` section of a ``config.json``; see ``ModelConfig.from_dict``."""
        reject_unknown("mimi", values, set(cls._SECTIONS))
        flat: dict[str, Any] = {}
        for name, known in cls._SECTIONS.items():
            section = values.get(name, {})
            if not isinstance(section, Mapping):
                raise ConfigError(f"config.json: mimi.{name} must be an object")
            fixed = cls._FIXED.get(name, {})
            reject_unknown(f"mimi.{name}", section, known | set(fixed))
            require_fixed(f"mimi.{name}", section, fixed)
            if name == "quantizer":
                flat |= {k: v for k, v in section.items() if k == "bins"}
                if "dimension" in section:
                    flat["codebook_dim"] = section["dimension"]
                stored = section.get("n_q", CODEBOOKS)
                if type(stored) is not int or stored < CODEBOOKS:
                    raise ConfigError(
                        f"config.json: mimi.quantizer.n_q is {section['n_q']}; "
                        f"at least {CODEBOOKS} codebooks are needed"
                    )
            else:
                flat |= section
        config = cls(**typed(cls, "mimi", flat))
        for name, keys in cls._SAME_DIMENSION.items():
            for key in keys:
                given = values.get(name, {}).get(key, config.dimension)
                if given not in (config.dimension, [config.dimension]):
                    raise ConfigError(
                        f"config.json: mimi.{name}.{key} is {given!r}; expected the codec's "
                        f"dimension, {config.dimension}"
                    )
        return config

    @property
    def window(self) -> int:
        """Latents (40 ms) attended to; see ``LMConfig.window``."""
        return self.context - 1


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's architecture and the codes that fill its prompts.

    Attributes:
        lm: The language model.
        mimi: The codec.
        silence_codes: The eight codes of a silent frame, from the reference implementation.
        sine_codes: The eight codes of a frame of a sine tone, which stands for the user's audio in
            a prompt; from the reference implementation.
        quantization: Storage format of the transformers' weights; None: floating point.
        dc_blocker: Whether a high-pass at 20 Hz stands before the codec, as in the training.
    """

    lm: LMConfig = field(default_factory=LMConfig)
    mimi: MimiConfig = field(default_factory=MimiConfig)
    silence_codes: tuple[int, ...] = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
    sine_codes: tuple[int, ...] = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
    quantization: Quantization | None = None
    dc_blocker: bool = False

    # Keys of the Hub's config.json that do not describe the architecture.
    _IGNORED: ClassVar[Any] = (
        "model_type",
        "moshi_name",
        "mimi_name",
        "tokenizer_name",
        "version",
        "architectures",
        "torch_dtype",
        "dtype",
        "transformers_version",
    )

    def __post_init__(self) -> None:
        for name in ("silence_codes", "sine_codes"):
            codes = getattr(self, name)
            if len(codes) != CODEBOOKS or not all(0 <= c < self.lm.card for c in codes):
                raise ConfigError(
                    f"config.json: {name} must be {CODEBOOKS} codes from 0 to {self.lm.card - 1}: "
                    f"{list(codes)}"
                )
        if self.mimi.bins != self.lm.card:
            raise ConfigError(
                f"config.json: the codec has {self.mimi.bins} codes a codebook and the language "
                f"model {self.lm.card}; they must agree"
            )

    def with_options(self, options: EngineConfig) -> ModelConfig:
        """The same model with a smaller context, with or without a DC blocker.

        Raises:
            ConfigError: The context is larger than the checkpoint's.
        """
        if options.context > self.lm.context:
            raise ConfigError(
                f"context {options.context} is more than the {self.lm.context} frames that this "
                "checkpoint was made for; use fewer, or 0 for all of them"
            )
        lm = dataclasses.replace(self.lm, context=options.context or self.lm.context)
        chosen = self.dc_blocker if options.dc_blocker is None else options.dc_blocker
        return dataclasses.replace(self, lm=lm, dc_blocker=chosen)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read a parsed ``config.json``; an empty one is the released 7B model.

        Raises:
            ConfigError: A key is unknown or has an unsupported value, or values contradict.
        """
        known = {spec.name for spec in dataclasses.fields(cls)} | set(cls._IGNORED)
        reject_unknown("top-level", values, known)
        for name in ("lm", "mimi"):
            if not isinstance(values.get(name, {}), Mapping):
                raise ConfigError(f"config.json: {name} must be an object")
        quantization = values.get("quantization")
        if quantization not in (None, *QUANTIZATIONS):
            raise ConfigError(
                f"config.json: quantization is {quantization!r}; known are: "
                + ", ".join(QUANTIZATIONS)
            )
        return cls(
            lm=LMConfig.from_dict(values.get("lm", {})),
            mimi=MimiConfig.from_dict(values.get("mimi", {})),
            quantization=quantization,
            **typed(
                cls,
                "top-level",
                {k: v for k, v in values.items() if k.endswith("_codes") or k == "dc_blocker"},
            ),
        )
