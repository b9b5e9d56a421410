"""What a user sets to put a backend behind the voice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.interface import MAX_HOLD_SECONDS
from pipecat_personaplex.service.delegation.backend_link import BackendLLMWorker
from pipecat_personaplex.service.delegation.delegation_times import TRANSCRIPT_SECONDS
from pipecat_personaplex.service.delegation.hold import Hold

if TYPE_CHECKING:
    from pipecat_personaplex.service.llm import PersonaPlexLLMService

PAIRING_INSTRUCTION = (
    "The assistant reads what you mark word for word, in its own voice. Write one or two short, "
    "plain sentences, with numbers, times and prices as one says them. If the assistant can "
    "answer from its role or from what was said, or if there is nothing to do, write only: nothing"
)
"""Added to the instruction of a ``BackendLLMWorker``, after Pipecat's own pairing instruction."""


@dataclass(frozen=True)
class Delegation:
    """A backend for a call: an LLM with tools that thinks beside the voice.

    Each finished turn of the caller goes to the backend. What it marks as spoken is spoken word for
    word, its notes become facts in the prompt, and if it has nothing to add, the model answers by
    itself. Give each call a worker of its own.

    Attributes:
        backend: A ``BackendLLMWorker``, or the name of one that is registered elsewhere.
        hold: When the agent keeps silent, so that no invented answer comes first.
        filler: Sentences to speak while the backend works, one a turn, in rotation.
        filler_after: Seconds before that, from a tool's call or the end of a turn that the hold's
            router accepts.
        timeout_secs: Seconds that the backend may take for a turn.
        transcript_secs: Seconds that the agent waits in silence for the transcript after the
            caller's turn has ended. With a slow speech-to-text, raise it; otherwise the model
            answers before the backend.
        sorry: Spoken once when the backend fails; empty for nothing.
        unanswered: Spoken after a long hold if the backend has nothing to add, because by then
            the model seldom answers by itself. Empty for nothing.
        summary_secs: Every so many seconds of the call, the backend's model summarises it, and the
            summary goes into the prompt: so the agent keeps what leaves its window, which is about
            four minutes for the released model. None for no summaries, as for a backend that is
            registered elsewhere.
        ground: A coroutine function of the service that returns facts for the prompt, such as the
            caller's account. The session waits for it up to 2 s; later facts follow when they come.

    Raises:
        ConfigError: A value is invalid.

    Example::

        agent = PersonaPlexLLMService(
            engine,
            delegation=PersonaPlexLLMService.Delegation(
                backend=BackendLLMWorker(
                    llm=OpenAILLMService(...), context=LLMContext(tools=[get_order])
                ),
                hold=Hold.until_decided(1.0),
                filler=("One moment.", "Let me check."),
            ),
        )
    """

    backend: BackendLLMWorker | str
    hold: Hold = field(default_factory=Hold.until_decided)
    filler: Sequence[str] = ()
    filler_after: float = 0.9
    timeout_secs: float = 20.0
    transcript_secs: float = TRANSCRIPT_SECONDS
    sorry: str = "I could not find that out."
    unanswered: str = "Sorry, go ahead."
    summary_secs: float | None = 110.0
    ground: Callable[[PersonaPlexLLMService], Awaitable[str | None]] | None = None

    def __post_init__(self) -> None:
        """Validate now, not when the first caller speaks."""
        if not isinstance(self.backend, BackendLLMWorker | str) or not self.backend:
            raise ConfigError(
                f"backend must be a BackendLLMWorker or the name of one, not {self.backend!r}"
            )
        if not isinstance(self.hold, Hold):
            raise ConfigError(
                "hold must be Hold.never(), Hold.when(...) or Hold.until_decided(...), "
                f"not {self.hold!r}"
            )
        if isinstance(self.filler, str):
            raise ConfigError('filler is a list of sentences, as in filler=("One moment.",)')
        if self.filler_after < 0:
            raise ConfigError(f"filler_after must be at least 0, not {self.filler_after}")
        if not 0 < self.timeout_secs <= 600:
            raise ConfigError(
                f"timeout_secs must be more than 0 and at most 600 s, not {self.timeout_secs}"
            )
        if not 0 < self.transcript_secs <= MAX_HOLD_SECONDS:
            raise ConfigError(
                f"transcript_secs must be more than 0 and at most {MAX_HOLD_SECONDS:g} s, "
                f"not {self.transcript_secs}"
            )
        if self.summary_secs is not None and self.summary_secs <= 0:
            raise ConfigError(f"summary_secs must be more than 0 s, not {self.summary_secs}")
        if self.ground is not None and not callable(self.ground):
            raise ConfigError(f"ground must be a coroutine function, not {self.ground!r}")

    @property
    def worker(self) -> BackendLLMWorker | None:
        """The backend, unless it is registered elsewhere."""
        return self.backend if isinstance(self.backend, BackendLLMWorker) else None
