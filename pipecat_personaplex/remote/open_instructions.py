"""Instructions that are not finished, and how they are written for a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import LimitReached, PersonaPlexError
from pipecat_personaplex.interface import Speech
from pipecat_personaplex.protocol.session_messages import (
    MAX_MESSAGE_BYTES,
    Instruction,
    Say,
    UpdatePrompt,
)

When = Literal["pause", "now"]
SpeechDone = Callable[[Speech], object]
PromptDone = Callable[[PersonaPlexError | None], object]


@dataclass(eq=False)
class Saying:
    """A speech that is not finished.

    Attributes:
        id: Its id in the messages.
        speech: The caller's handle.
        when: As ``SessionLike.say``.
        on_done: Called when the speech is finished.
        words: The words of its text.
        sent: Whether the server has it.
        spoken_before: Words spoken at servers from which the call has moved.
    """

    id: int
    speech: Speech
    when: When
    on_done: SpeechDone | None
    words: list[str]
    sent: bool = False
    spoken_before: int = 0

    def message(self, *, progress: bool) -> Say:
        """The request to say the words that are not spoken yet."""
        text = self.speech.text
        if self.spoken_before:
            text = " ".join(self.words[self.spoken_before :])
        return Say(text=text, id=self.id, when=self.when) if progress else Say(text=text)


@dataclass(eq=False)
class PromptRequest:
    """A new persona that is not in effect yet."""

    id: int
    persona: Persona
    history: int | None
    on_done: PromptDone | None

    def message(self) -> UpdatePrompt:
        """The request to replace the prompt."""
        return UpdatePrompt(
            id=self.id,
            voice=self.persona.voice,
            text_prompt=self.persona.text_prompt,
            history=self.history,
        )


def encode(instruction: Instruction) -> str:
    """Encode an instruction without the fields that older servers do not know."""
    return instruction.model_dump_json(exclude_none=True)


def require_fits(what: str, message: str) -> None:
    """Refuse a message that is too long for a server, which would close the connection.

    Args:
        what: What the message contains, for the error.
        message: The message as JSON.

    Raises:
        LimitReached: The message is too long.
    """
    size = len(message.encode())
    if size > MAX_MESSAGE_BYTES:
        raise LimitReached(
            f"the message with the {what} has {size} bytes; a server accepts {MAX_MESSAGE_BYTES}"
        )
