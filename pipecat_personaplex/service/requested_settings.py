"""Settings as they were requested for each persona, to restore them if a persona is rejected."""

from __future__ import annotations

from pipecat_personaplex.config import Persona
from pipecat_personaplex.service.settings import PersonaPlexLLMSettings


class RequestedSettings:
    """The settings from which each persona was made: the one in effect and those requested since.

    They cannot be derived from the persona: the voice may have been left to the engine, and the
    prompt includes what ``LLMService`` appends, which it would append again.
    """

    def __init__(self) -> None:
        self._settings: dict[Persona, PersonaPlexLLMSettings] = {}  # in the order of the requests

    def add(self, persona: Persona, settings: PersonaPlexLLMSettings) -> None:
        """Add a request, as the latest."""
        self._settings.pop(persona, None)
        self._settings[persona] = settings

    def in_effect(self, persona: Persona) -> None:
        """Forget the requests before this one: they are not in effect any more."""
        personas = list(self._settings)
        for earlier in personas[: personas.index(persona)] if persona in personas else []:
            del self._settings[earlier]

    def of(self, persona: Persona) -> PersonaPlexLLMSettings:
        """The settings that were requested for this persona."""
        made = PersonaPlexLLMSettings(
            voice=persona.voice, system_instruction=persona.text_prompt or None
        )
        return self._settings.get(persona, made)

    def same_settings(self, persona: Persona, other: Persona) -> bool:
        """Whether two personas differ by facts alone, which are in no settings."""
        return self.of(persona) == self.of(other)
