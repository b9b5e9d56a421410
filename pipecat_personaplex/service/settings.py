"""Settings of the service that may change during a call."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipecat.services.settings import LLMSettings
from pipecat.utils.types import NOT_GIVEN, NotGiven, assert_given

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.service.metrics import MODEL_NAME

PERSONA_FIELDS = frozenset({"voice", "system_instruction"})
SAMPLING_FIELDS = frozenset(
    {"seed", "temperature_audio", "temperature_text", "top_k_audio", "top_k_text"}
)


@dataclass
class PersonaPlexLLMSettings(LLMSettings):
    """Settings of ``PersonaPlexLLMService``; change them with an ``LLMUpdateSettingsFrame``.

    A new ``voice`` or ``system_instruction`` is a new persona. It takes over without a gap once
    its prompt is computed, and remembers the call; only on an engine that cannot do so, another
    session without this memory takes over. The other fields apply from the next frame on. Fields
    of ``LLMSettings`` that are not listed here have no effect.

    Parameters:
        voice: A name in ``Engine.voices``; None for the first of them.
        system_instruction: The role, in plain words; None for no role.
        seed: Seed of the sampling; None for 0.
        temperature_audio: Temperature of the agent's audio codes; 0 is greedy.
        temperature_text: Temperature of the inner monologue; 0 is greedy.
        top_k_audio: Candidates for each audio code.
        top_k_text: Candidates for each text token.

    Example::

        delta = PersonaPlexLLMService.Settings(temperature_audio=0.6)
        await worker.queue_frame(LLMUpdateSettingsFrame(delta=delta))
    """

    voice: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    temperature_audio: float | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    temperature_text: float | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    top_k_audio: int | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    top_k_text: int | NotGiven = field(default_factory=lambda: NOT_GIVEN)

    @classmethod
    def defaults(cls) -> PersonaPlexLLMSettings:
        """Settings with a value for every field, as Pipecat requires of a service."""
        sampling = SamplingParams()
        return cls(
            model=MODEL_NAME,
            voice=None,
            system_instruction=None,
            seed=sampling.seed,
            temperature_audio=sampling.temperature_audio,
            temperature_text=sampling.temperature_text,
            top_k_audio=sampling.top_k_audio,
            top_k_text=sampling.top_k_text,
            temperature=None,
            max_tokens=None,
            top_p=None,
            top_k=None,
            frequency_penalty=None,
            presence_penalty=None,
            filter_incomplete_user_turns=False,
            user_turn_completion_config=None,
            use_provider_thinking_default=False,
        )

    def check(self) -> None:
        """Validate these settings as far as that needs no engine; every field must have a value.

        Raises:
            ConfigError: A value has the wrong type or is out of range.
        """
        self.persona([])
        self.sampling()

    def persona(self, voices: list[str]) -> Persona:
        """The persona that these settings describe; every field must have a value.

        Args:
            voices: Names of the engine's voices; the first one is the default.

        Raises:
            ConfigError: A value has the wrong type.
        """
        voice = assert_given(self.voice)
        if voice is None:
            # If the engine has no voices, it refuses the empty name with a clear error.
            voice = next(iter(voices), "")
        return Persona(voice, assert_given(self.system_instruction) or "")

    def sampling(self) -> SamplingParams:
        """The sampling that these settings describe; every field must have a value.

        Raises:
            ConfigError: A value is out of range.
        """
        return SamplingParams(
            seed=0 if self.seed is None else assert_given(self.seed),
            temperature_audio=assert_given(self.temperature_audio),
            temperature_text=assert_given(self.temperature_text),
            top_k_audio=assert_given(self.top_k_audio),
            top_k_text=assert_given(self.top_k_text),
        )
