"""What may change during a call."""

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
    """Settings of ``PersonaPlexLLMService``, changed with an ``LLMUpdateSettingsFrame``.

    A new ``voice`` or ``system_instruction`` is a new persona: it takes over once its prompt is
    computed, without a gap, and remembers nothing of the conversation so far. The others apply
    from the next frame on. Fields of ``LLMSettings`` that are not named here have no effect.

    Parameters:
        voice: A name in ``Engine.voices``; None is the first of them.
        system_instruction: The role, in plain words; None is no role.
        seed: Keys the sampling; None is 0.
        temperature_audio: Of the agent's audio codes; 0 is greedy.
        temperature_text: Of the inner monologue; 0 is greedy.
        top_k_audio: Candidates kept for each audio code.
        top_k_text: Candidates kept for each text token.
    """

    voice: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    temperature_audio: float | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    temperature_text: float | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    top_k_audio: int | NotGiven = field(default_factory=lambda: NOT_GIVEN)
    top_k_text: int | NotGiven = field(default_factory=lambda: NOT_GIVEN)

    @classmethod
    def defaults(cls) -> PersonaPlexLLMSettings:
        """Settings with every field set, as a service keeps them."""
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

    def persona(self, voices: list[str]) -> Persona:
        """Who these settings describe, of complete ones."""
        voice = assert_given(self.voice)
        if voice is None:
            # An engine without voices will say so.
            voice = next(iter(voices), "")
        return Persona(voice, assert_given(self.system_instruction) or "")

    def sampling(self) -> SamplingParams:
        """How these settings draw tokens, of complete ones.

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
