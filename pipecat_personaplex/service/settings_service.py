"""The part of the service that applies settings to the call, and undoes what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import asdict, replace
from typing import Any

from loguru import logger
from pipecat.frames.frames import LLMContextFrame
from pipecat.services.llm_service import LLMService, LLMWithBackendRole
from pipecat.services.settings import LLMSettings
from pipecat.utils.errors import ErrorCategory
from pipecat.utils.types import is_given

from pipecat_personaplex.config import Persona, checked_text
from pipecat_personaplex.errors import (
    ConfigError,
    PersonaPlexError,
    PromptTooLong,
    VoiceNotFound,
)
from pipecat_personaplex.interface import EngineLike
from pipecat_personaplex.service.call import Call
from pipecat_personaplex.service.context import (
    facts_of,
    has_tools,
    role_message_of,
    system_prompt_of,
)
from pipecat_personaplex.service.errors import as_personaplex_error, category_of
from pipecat_personaplex.service.knowledge import FACT_TOKENS, PromptFacts
from pipecat_personaplex.service.requested_settings import RequestedSettings
from pipecat_personaplex.service.settings import (
    PERSONA_FIELDS,
    SAMPLING_FIELDS,
    PersonaPlexLLMSettings,
)

# How often new facts are tried again when the engine is too busy, and the seconds before each
# attempt.
_FACTS_ATTEMPTS = 3
_FACTS_RETRY_SECONDS = 5.0

# Which setting an engine refuses with an error.
_REFUSED_BY: dict[type[PersonaPlexError], str] = {
    VoiceNotFound: "voice",
    PromptTooLong: "system_instruction",
}


class SettingsService(LLMService):
    """A service with a call whose persona and sampling follow its settings.

    It warns of what has no effect: settings of other models, and tools. ``PersonaPlexLLMService``
    adds the frames of the pipeline.

    Args:
        engine: A started engine.
        settings: Settings that differ from the defaults.
        clock: Returns monotonic seconds; paces the call's input.
        **kwargs: Passed to ``LLMService``.

    Raises:
        ConfigError: ``engine`` is not an engine, or a setting has an invalid value.
    """

    Settings = PersonaPlexLLMSettings
    _settings: PersonaPlexLLMSettings

    def __init__(
        self,
        engine: EngineLike,
        settings: PersonaPlexLLMSettings | None,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ):
        if not callable(getattr(engine, "open_session", None)):
            raise ConfigError(
                f"engine must be a started Engine or RemoteEngine, not {type(engine).__name__}; "
                "Engine.load(...) makes one, and start() starts it"
            )
        complete = self.Settings.defaults()
        given = {} if settings is None else complete.apply_update(settings)
        complete.check()  # now, not when the first caller connects
        super().__init__(settings=complete, **kwargs)
        self._engine = engine
        self._call = Call(engine, clock)
        self._requested = RequestedSettings()
        self._first_persona = self._persona_settings()
        self._opened = False  # whether the first session is open, or could not be opened
        self._facts = PromptFacts(self._apply_facts)
        self._facts_failures = 0
        self._default_voices: list[str] = []  # at most one: that of the call's beginning
        self._role_message: object = None
        self._context_seen = self._tools_seen = False
        self._warn_without_effect(given.keys())

    @property
    def session_id(self) -> str | None:
        """The public id of the current session, as in every log line about it.

        None if no session is open.
        """
        session = self._call.session
        return None if session is None else session.id

    def llm_with_backend_role_objection(self, role: LLMWithBackendRole) -> str:
        """Decline both roles: the model calls no tools and does not respond to text."""
        return (
            f"{type(self).__name__} cannot be an LLMWithBackend {role}: its model calls no tools "
            "and does not respond to text. Give the service a backend of its own: "
            "delegation=PersonaPlexLLMService.Delegation(backend=BackendLLMWorker(...))"
        )

    def register_function(self, function_name: str | None, handler: Any, **options: Any) -> None:
        """Register a function, and warn if nothing ever calls it."""
        self._warn_of_tools()
        super().register_function(function_name, handler, **options)

    def set_fact(self, key: str, text: str) -> None:
        """Give the agent a fact that it can use from then on, without a word spoken.

        Facts follow the role in the prompt, newest first, about 400 tokens in all. Changes within
        0.3 s are one new prompt. The engine must support new prompts; see ``SessionLike.features``.

        Args:
            key: Names the fact, to replace or drop it.
            text: One or more sentences; empty removes the fact.
        """
        self._facts.set(key, text)

    def drop_fact(self, key: str) -> None:
        """Remove a fact; does nothing if there is no such fact."""
        self._facts.drop(key)

    def _compose_system_instruction(self) -> None:
        """Compose the role without what Pipecat adds for tools and turns: a voice reads it."""
        parts = (self._base_system_instruction, *self._appended_system_instructions)
        self._settings.system_instruction = "\n\n".join(filter(None, parts)) or None

    def _persona_settings(self) -> PersonaPlexLLMSettings:
        """Voice and role as they were requested, without what ``LLMService`` appends."""
        return self.Settings(
            voice=self._settings.voice, system_instruction=self._base_system_instruction
        )

    def _persona(self) -> Persona:
        return self._facts.added_to(self._persona_without_facts())

    def _persona_without_facts(self) -> Persona:
        # A voice that somebody adds to the engine must not become this call's.
        self._default_voices = self._default_voices or self._engine.voices[:1]
        return self._settings.persona(self._default_voices)

    def _apply_facts(self) -> None:
        """Replace the prompt of the running session by one with the facts as they are now."""
        session = self._call.session
        if session is None or "prompt" not in session.features or not self._call.active:
            return
        try:
            while self._persona() != self._call.requested_persona:
                if self._open_or_drop_facts():
                    break
        except PersonaPlexError as error:
            self.warn(f"the facts were not changed: {error}")

    def _open_session(self) -> None:
        """Open a session, or change its prompt, with as many facts as fit."""
        while not self._open_or_drop_facts():
            pass

    def _open_or_drop_facts(self) -> bool:
        """Open a session, or change its prompt; if that is refused, drop facts instead.

        Returns:
            Whether the prompt was accepted; if not, the next one has fewer facts.

        Raises:
            PersonaPlexError: As ``Call.open``; fewer facts would not help.
        """
        persona, sampling = self._persona(), self._settings.sampling()
        try:
            self._call.open(persona, sampling)
        except PersonaPlexError as error:
            if not self._drop_facts(error):
                raise
            return False
        self._requested.add(persona, self._persona_settings())
        return True

    async def _open_first_session(self) -> None:
        """Open the first session; an earlier change of the settings that it refuses is undone."""
        try:
            self._open_session()
        except PersonaPlexError as error:
            if not await self._open_with_less(error):
                raise
        finally:
            self._opened = True

    async def _open_with_less(self, error: PersonaPlexError) -> bool:
        """Open a first session without what the engine has refused: facts, or a change of settings.

        Args:
            error: What the engine has said to the facts, the voice or the role.

        Returns:
            Whether there were facts, or another voice or role than the service was made with.
        """
        if self._drop_facts(error):
            await self._open_first_session()
            return True
        name = _REFUSED_BY.get(type(error))
        if name is None:
            return False
        first = getattr(self._first_persona, name)
        if getattr(self._persona_settings(), name) == first:
            return False
        await super()._update_settings(self.Settings(**{name: first}))
        await self._push_application_error(f"the settings were not changed: {error}", error)
        await self._open_first_session()
        return True

    async def _update_settings(  # type: ignore[override]
        self, delta: LLMSettings
    ) -> dict[str, Any]:
        try:
            if is_given(delta.system_instruction) and delta.system_instruction is not None:
                # LLMService takes what is not text for no instruction.
                checked_text("system_instruction", delta.system_instruction)
        except ConfigError as error:
            await self._push_application_error(f"the settings were not changed: {error}", error)
            return {}
        prompt = self._base_system_instruction
        changed = await super()._update_settings(delta)
        self._warn_without_effect(changed.keys())
        try:
            if not self._opened:
                self._settings.check()
            elif changed.keys() & PERSONA_FIELDS:
                self._open_session()
            elif changed.keys() & SAMPLING_FIELDS:
                self._call.update(self._settings.sampling())
        except Exception as error:
            if "system_instruction" in changed:
                changed["system_instruction"] = prompt  # without what LLMService appended
            return await self._restore_settings(changed, as_personaplex_error(error))
        return changed

    async def _restore_settings(
        self, changed: dict[str, Any], error: PersonaPlexError
    ) -> dict[str, Any]:
        """Undo changes that the engine refused; returns the changes that remain."""
        refused = changed.keys() & (PERSONA_FIELDS | SAMPLING_FIELDS)
        await super()._update_settings(self.Settings(**{name: changed[name] for name in refused}))
        if self._opened and self._call.persona is None:
            await self._fail_call(error)
        else:
            await self._push_application_error(f"the settings were not changed: {error}", error)
        return {name: old for name, old in changed.items() if name not in refused}

    def _drop_facts(self, error: PersonaPlexError) -> bool:
        """Drop facts that the engine may have refused; returns whether the prompt is shorter now.

        If the prompt is too long, these are the oldest facts. If it is invalid, these are all
        facts, for instance because the checkpoint takes no text prompt.
        """
        if isinstance(error, PromptTooLong):
            tokens = error.frames - error.limit
        elif isinstance(error, ConfigError):
            tokens = FACT_TOKENS
        else:
            return False
        dropped = self._facts.shrink(self._persona_without_facts(), tokens)
        if dropped and isinstance(error, ConfigError):
            self.warn(f"all facts are left out of the prompt: {error}")
        return dropped

    async def _reject_persona(self, persona: Persona, error: PersonaPlexError) -> None:
        """Handle a new persona that failed: try it with fewer facts, or keep the old one."""
        current = self._call.persona
        if current is None or self._requested.same_settings(persona, current):
            await self._reject_facts(error)
        elif self._drop_facts(error):
            try:
                self._open_session()
            except PersonaPlexError as final:
                await self._restore_persona(final)
        else:
            await self._restore_persona(error)

    async def _reject_facts(self, error: PersonaPlexError) -> None:
        """Try facts again that failed: with fewer of them, or later."""
        if self._drop_facts(error):
            self._facts.renew()
            return
        if isinstance(error, PromptTooLong):
            return
        self._facts_failures += 1
        if self._facts_failures <= _FACTS_ATTEMPTS:
            self._facts.renew(_FACTS_RETRY_SECONDS)
        await self._push_application_error(f"the facts were not changed: {error}", error)

    async def _restore_persona(self, error: PersonaPlexError) -> None:
        """Set the settings back to those of the active session."""
        persona, sampling = self._call.persona, self._call.sampling
        if persona is not None and sampling is not None:
            await super()._update_settings(replace(self._requested.of(persona), **asdict(sampling)))
        self._facts.renew(_FACTS_RETRY_SECONDS)  # the new prompt may have had new facts
        await self._push_application_error(f"the persona was not changed: {error}", error)

    async def _read_context(self, frame: LLMContextFrame) -> None:
        if frame.speculation:
            # LLMService holds back the response to a speculative context until the user's turn is
            # over. This model responds to no particular turn and must not be silenced.
            self._speculation_gate.begin_speculation(False)
        if has_tools(frame.context):
            self._warn_of_tools()
        first, self._context_seen = not self._context_seen, True
        if first:
            self._role_message = role_message_of(
                frame.context, developer=self._settings.system_instruction is None
            )
        # The other messages of users and assistants are what the model has already heard.
        self._facts.mirror("context:", facts_of(frame.context, self._role_message))
        if first and self._settings.system_instruction is None:
            role = system_prompt_of(frame.context)
            if role:
                await self._update_settings(self.Settings(system_instruction=role))

    def _warn_without_effect(self, names: Set[str]) -> None:
        without_effect = names - PERSONA_FIELDS - SAMPLING_FIELDS
        if without_effect:
            self.warn(f"settings without effect: {', '.join(sorted(without_effect))}")

    def _warn_of_tools(self) -> None:
        if not self._tools_seen:
            self.warn(
                "tools have no effect, this model calls no functions; give the service an LLM that "
                "does: delegation=PersonaPlexLLMService.Delegation(backend=BackendLLMWorker(...))"
            )
        self._tools_seen = True

    def warn(self, message: str) -> None:
        """Log a warning about this call."""
        logger.bind(session=self.session_id or "").warning(f"{self}: {message}")

    async def _push_application_error(self, message: str, error: PersonaPlexError) -> None:
        """Report an error after which the call continues, so the service stays usable."""
        await self.push_error(message, error, category=ErrorCategory.APPLICATION)

    async def _fail_call(self, error: PersonaPlexError) -> None:
        """Report that this call cannot continue."""
        await self.push_error(str(error), error, force_treat_as_permanent=True)

    def _classify_error(self, exception: Exception) -> ErrorCategory | None:
        return category_of(exception)
