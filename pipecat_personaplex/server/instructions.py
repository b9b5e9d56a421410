"""Executes the instructions of a session's client, and reports what becomes of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from pipecat_personaplex.asgi.token_bucket import TokenBucket
from pipecat_personaplex.async_session import AsyncSession
from pipecat_personaplex.config import Persona
from pipecat_personaplex.errors import BadMessage, LimitReached, PersonaPlexError
from pipecat_personaplex.interface import Speech
from pipecat_personaplex.protocol.session_messages import (
    MAX_SPEECHES,
    Hold,
    Hush,
    Instruction,
    Prompted,
    Release,
    Say,
    SpeechState,
    Update,
    UpdatePrompt,
    prompted_message,
)
from pipecat_personaplex.server.config import ServerConfig
from pipecat_personaplex.server.limits import check_length
from pipecat_personaplex.server.metrics import Metrics

# A prompt update costs the model's time. The burst lets a client that sends one a second
# be a little early.
_PROMPTS_PER_SECOND = 1.0
_PROMPT_BURST = 2.0
# Words are turned into tokens on the event loop. The burst lets a call that moves here repeat what
# waited elsewhere.
_TEXTS_PER_SECOND = 10.0
_TEXT_BURST = 2.0 * MAX_SPEECHES

Report = SpeechState | Prompted
_Progress = tuple[Literal["waiting", "speaking", "said", "cut"], int]


@dataclass(eq=False)
class _SentSpeech:
    """A speech that the engine has accepted, and what the client knows of it.

    Attributes:
        speech: The engine's handle. Its words and its state may change at any time until ``done``.
        done: Whether the engine has finished with it; set on the engine's thread.
        reported: State and spoken words as last reported.
    """

    speech: Speech
    done: bool = False
    reported: _Progress = ("waiting", 0)

    def progress(self) -> _Progress:
        """State and spoken words; final only once the count of spoken words is final."""
        done = self.done  # before the rest: what follows is then final
        state = self.speech.state
        if not done and state in ("said", "cut"):
            state = "speaking" if self.speech.spoken else "waiting"
        return state, self.speech.spoken


class InstructionExecutor:
    """Executes a client's instructions in its session.

    Args:
        session: The session, open.
        config: The server's limits.
        metrics: Counts prompt updates.

    Attributes:
        received: Instructions so far, refused ones included.

    Example::

        executor = InstructionExecutor(session, config, metrics)
        executor.execute(Say(text="Good morning!", id=1))
        for report in executor.reports():
            await socket.send(report.model_dump_json())
    """

    def __init__(self, session: AsyncSession, config: ServerConfig, metrics: Metrics):
        self.received = 0
        self._session = session
        self._config = config
        self._metrics = metrics
        # Speeches that are not finished, by id; at most MAX_SPEECHES. Those that the client has
        # given no id, and that are not reported, have negative numbers.
        self._speeches: dict[int, _SentSpeech] = {}
        self._unnamed = 0
        self._last_id = -1
        # The id of the prompt update in flight, and its result once the engine has reported it.
        self._prompt_id: int | None = None
        self._prompt_result: tuple[PersonaPlexError | None] | None = None
        now = asyncio.get_running_loop().time()
        self._prompts = TokenBucket(_PROMPTS_PER_SECOND, _PROMPT_BURST, now)
        self._texts = TokenBucket(_TEXTS_PER_SECOND, _TEXT_BURST, now)

    def execute(self, instruction: Instruction) -> None:
        """Do what a client requests.

        Raises:
            BadMessage: The id of a speech is not larger than those before it.
            UserError: The instruction is refused; the session is unchanged.
            EngineError: The session has ended.
        """
        self.received += 1
        session = self._session.engine_session
        match instruction:
            case Say():
                self._say(instruction)
            case Hush(id=None):
                session.hush()
            case Hush(id=int(id)):
                if (sent := self._speeches.get(id)) is not None:
                    session.hush(sent.speech)
            case Hold(seconds=seconds):
                session.hold(seconds)
            case Release():
                session.release()
            case Update(sampling=sampling):
                session.update(sampling)
            case UpdatePrompt():
                self._update_prompt(instruction)

    def refuse(self, instruction: Instruction, error: PersonaPlexError) -> Report | None:
        """The report that a refused instruction requires, if any."""
        match instruction:
            case Say(id=int(id)):
                return SpeechState(id=id, state="cut", spoken=0)
            case UpdatePrompt(id=id):
                self._metrics.prompt_updates.labels("refused").inc()
                return prompted_message(id, error)
        return None

    def reports(self) -> list[Report]:
        """What has changed since the last call."""
        changed: list[Report] = []
        for id, sent in list(self._speeches.items()):
            state, spoken = progress = sent.progress()
            if id >= 0 and progress != sent.reported:
                sent.reported = progress
                changed.append(SpeechState(id=id, state=state, spoken=spoken))
            if state in ("said", "cut"):
                del self._speeches[id]
        if self._prompt_id is not None and self._prompt_result is not None:
            (error,) = self._prompt_result
            changed.append(prompted_message(self._prompt_id, error))
            self._metrics.prompt_updates.labels("refused" if error else "done").inc()
            self._prompt_id = self._prompt_result = None
        return changed

    def _say(self, message: Say) -> None:
        if message.id is not None:
            if message.id <= self._last_id:
                raise BadMessage(
                    f"the id of a speech must be larger than {self._last_id}, not {message.id}"
                )
            self._last_id = message.id
        check_length("words to say", message.text, self._config)
        if len(self._speeches) >= MAX_SPEECHES:
            raise LimitReached(f"{MAX_SPEECHES} speeches already wait")
        if not self._texts.take(asyncio.get_running_loop().time()):
            raise LimitReached(f"a session may say {_TEXTS_PER_SECOND:g} texts a second")
        if message.id is None:
            self._unnamed -= 1
        id = self._unnamed if message.id is None else message.id
        # The engine may report the end before ``say`` has returned.
        sent = _SentSpeech(Speech(message.text, 0))

        def finish(speech: Speech) -> None:
            sent.speech, sent.done = speech, True
            self._session.notify()

        speech = self._session.engine_session.say(
            message.text, when=message.when or "pause", on_done=finish
        )
        if not sent.done:
            sent.speech = speech
        self._speeches[id] = sent

    def _update_prompt(self, message: UpdatePrompt) -> None:
        check_length("a text prompt", message.text_prompt, self._config)
        if self._prompt_id is not None:
            raise LimitReached("a prompt update is in progress; wait for its result")
        if not self._prompts.take(asyncio.get_running_loop().time()):
            raise LimitReached("a session may update its prompt once a second")

        def finish(error: PersonaPlexError | None) -> None:
            self._prompt_result = (error,)
            self._session.notify()

        self._prompt_id = message.id
        try:
            self._session.engine_session.update_prompt(
                Persona(message.voice, message.text_prompt),
                history=message.history,
                on_done=finish,
            )
        except BaseException:
            self._prompt_id = self._prompt_result = None
            raise
