"""What the agent knows at the start of a call, and what it keeps of its early minutes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loguru import logger
from pipecat.processors.aggregators.llm_context import (
    LLMContext,
    LLMContextMessage,
    standard_message_text,
)

from pipecat_personaplex.service.delegation.delegation import Delegation

if TYPE_CHECKING:
    from pipecat_personaplex.service.llm import PersonaPlexLLMService

GROUND_SECONDS = 2.0
"""How long the session waits for the facts of ``Delegation.ground``."""

_SUMMARY_SECONDS = 20.0  # for the backend's model to write it
_SUMMARY_TOKENS = 220
_SUMMARY_INSTRUCTION = (
    "Summarise the telephone call below for the assistant who goes on with it. Write at most five "
    "short sentences: who the caller is, what they want, what was agreed, and what is still open. "
    "Write nothing else."
)


class CallMemory:
    """Puts facts at the start of a call, and a summary of its past, into the prompt.

    Args:
        front: The service.
        config: What the user has set.
    """

    def __init__(self, front: PersonaPlexLLMService, config: Delegation):
        self._front = front
        self._config = config
        self._grounding: asyncio.Task[None] | None = None
        self._summing_up: asyncio.Task[None] | None = None
        self._summary = ""
        self._summed_up: set[int] = set()  # messages, by identity
        self._summed_up_messages: Sequence[LLMContextMessage] = ()  # keeps identities in use

    async def ground(self) -> None:
        """Get the facts for the start of the call; returns after ``GROUND_SECONDS`` at most."""
        if self._config.ground is None:
            return
        self._grounding = self._front.create_task(self._ground(), f"{self._front}::ground")
        await asyncio.wait({self._grounding}, timeout=GROUND_SECONDS)

    def sum_up(self, context: LLMContext) -> None:
        """Have the backend's model summarise the call so far; it goes into the prompt."""
        running = self._summing_up is not None and not self._summing_up.done()
        if self._config.worker is None or running:
            return
        messages = list(context.get_messages())
        new = [message for message in messages if id(message) not in self._summed_up]
        lines = [
            f"{str(message.get('role')).upper()}: {text}"
            for message in new
            if isinstance(message, dict)
            and message.get("role") in ("user", "assistant")
            and (text := standard_message_text(message))
        ]
        if not lines:
            return
        self._summed_up_messages = messages
        self._summed_up = {id(message) for message in messages}
        earlier = [f"Summary of the call before: {self._summary}"] if self._summary else []
        self._summing_up = self._front.create_task(
            self._sum_up("\n".join([*earlier, *lines])), f"{self._front}::summary"
        )

    async def close(self) -> None:
        """Stop what is in progress."""
        for task in (self._grounding, self._summing_up):
            if task is not None:
                await self._front.cancel_task(task)
        self._grounding = self._summing_up = None

    async def _ground(self) -> None:
        assert self._config.ground is not None
        try:
            facts = await self._config.ground(self._front)
        except Exception as error:
            await self._front.report_backend_error(
                f"no facts for this call: ground raised {error!r}"
            )
        else:
            self._front.set_fact("ground", facts or "")

    async def _sum_up(self, text: str) -> None:
        assert self._config.worker is not None
        context = LLMContext([{"role": "user", "content": text}])
        try:
            async with asyncio.timeout(_SUMMARY_SECONDS):
                summary = await self._config.worker.llm.run_inference(
                    context, max_tokens=_SUMMARY_TOKENS, system_instruction=_SUMMARY_INSTRUCTION
                )
            written = " ".join((summary or "").split())
            if not written:
                raise ValueError("the backend's model wrote nothing")
        except Exception as error:
            logger.warning(f"{self._front}: no summary of the call: {error!r}")
            self._summed_up = set()  # the next one includes these messages
            return
        self._summary = written
        self._front.set_fact("summary", f"Earlier in this call: {self._summary}")
