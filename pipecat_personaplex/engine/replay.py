"""Replay: compute [a prompt + the newest frames of a running call] beside the call.

A call lies in the same token grid as its prompt, so both together are one prompt with all tokens
given: its positions are computed in parallel, between the steps of the call. When the computation
has reached the newest frame, the result replaces the keys and values of the call's slot. The codec,
the sampler and the input queue do not depend on the prompt and go on. With the same prompt and all
frames the tokens that follow are those of the undisturbed call; with another prompt the agent
continues the call with another role.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from loguru import logger

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.engine.history import History
from pipecat_personaplex.engine.memory_plan import require_replay_memory
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.engine.prompt_updates import PromptUpdate
from pipecat_personaplex.engine.stats import Counters
from pipecat_personaplex.errors import EngineError, PersonaPlexError
from pipecat_personaplex.session import Session

_RESERVE_FRAMES = 256
# A call may grow by at least this many frames while its replay is computed.
_LEAST_SLACK = 64
# ``keep_persona`` acts when this part of the window is filled.
NEARLY_FULL = 0.95


def remembered_frames(prompt_frames: int, window: int, requested: int | None = None) -> int:
    """How many frames of a call follow a prompt.

    The rest of the window is reserved for the call to go on before the prompt's start is
    forgotten: a quarter of the window, and at least 20 s. A long prompt leaves at most an eighth
    of the window to the call.

    Args:
        prompt_frames: Frames of the prompt. A small checkpoint's prompt may exceed its window.
        window: Frames that the model attends to.
        requested: Upper bound; None for none.
    """
    room, eighth = window - prompt_frames, window // 8
    most = max(room - max(_RESERVE_FRAMES, window // 4), min(eighth, room - _LEAST_SLACK))
    if most <= 0:
        most = eighth
    return most if requested is None else min(requested, most)


class Replay:
    """Computes the state after a prompt and the newest frames of a call, while the call grows.

    Args:
        runner: The model.
        prompt: The prompt.
        cached: The state after the prompt alone, if known; then only the call is computed.
        history: The call.
        remembered: Newest frames of the call to compute.

    Raises:
        ConfigError: The device has too little memory for the keys and values.
    """

    def __init__(
        self,
        runner: ModelRunner,
        prompt: Prompt,
        cached: Prefix | None,
        history: History,
        remembered: int,
    ):
        self._config = runner.config
        self._history = history
        self._next = max(history.oldest, history.frames - remembered)  # first frame not computed
        window = runner.config.lm.window
        frames = prompt.frames + history.frames - self._next
        # Always one window, so that the allocator reuses the memory of the last replay.
        self._capacity = max(window, frames + _LEAST_SLACK)
        require_replay_memory(runner.config.lm, self._capacity, runner.lm.dtype, runner.device)
        self._prefill = Prefill(
            runner.lm, prompt, runner.device, window, start=cached, capacity=self._capacity
        )

    def advance(self, chunk: int) -> Prefix | None:
        """Compute up to ``chunk`` more positions.

        Returns:
            The state after the newest frame, if it has been reached; else None.

        Raises:
            EngineError: The call grows faster than its replay is computed, or the state is not
                finite.
        """
        # The ring still holds frame ``_next``: it is the first one since the last call.
        new = torch.from_numpy(self._history.since(self._next)).long()  # [n, 17]
        if self._prefill.prompt.frames + len(new) > self._capacity:
            raise EngineError(
                "the call went on faster than its state could be computed again; retry when the "
                "engine has less load"
            )
        self._prefill.extend(new, self._config)
        self._next += len(new)
        prefix = self._prefill.advance(chunk)
        if prefix is not None and not prefix.hidden.isfinite().all():
            raise EngineError("the new prompt's state is not finite; is the voice file damaged?")
        return prefix


@dataclass(eq=False)
class _Running:
    """The replay in progress; ``update`` is None if ``keep_persona`` has started it."""

    slot: int
    session: Session
    prompt: Prompt
    update: PromptUpdate | None
    replay: Replay


class Replays:
    """Runs the replays of all live sessions, one at a time. Used by the model thread only.

    Requests of clients are served in the order of their time. ``keep_persona`` comes after them,
    unless its prompt has begun to leave the window.

    Args:
        config: Gives ``keep_persona`` and the chunk size.
        prefixes: Cached prompts.
        counters: Counts replays.
        synchronize: Waits for the device; raises if it has failed.
    """

    def __init__(
        self,
        config: EngineConfig,
        prefixes: PrefixCache,
        counters: Counters,
        synchronize: Callable[[], None],
    ):
        self._config = config
        self._prefixes = prefixes
        self._counters = counters
        self._synchronize = synchronize
        self.clear()

    def clear(self) -> None:
        """Forget all sessions."""
        self._running: _Running | None = None
        self._prompts: dict[int, Prompt] = {}  # by slot: the prompt in effect
        self._keep_from: dict[int, int] = {}  # by slot: position from which to retry

    def session_started(self, slot: int, prompt: Prompt) -> None:
        """Note the prompt of a session that has become live."""
        self._prompts[slot] = prompt
        self._keep_from[slot] = 0

    def session_ended(self, slot: int) -> None:
        """Drop what belongs to a slot whose session is over."""
        del self._prompts[slot], self._keep_from[slot]
        if self._running is not None and self._running.slot == slot:
            self._running = None

    def next_slot(self, runner: ModelRunner, live: dict[int, Session]) -> int | None:
        """The slot for whose session ``advance`` has work; None if there is no work."""
        # Closed sessions are skipped: the next pass ends them and drops their replay.
        running = self._running
        if running is not None:
            return None if running.session.closed else running.slot
        # The longest call first: its prompt leaves the window next.
        position, longest = max(
            ((runner.position(slot), slot) for slot in live if self._nearly_full(runner, slot)),
            default=(0, None),
        )
        if position > runner.config.lm.window:
            return longest
        waiting = [
            (update.requested, slot)
            for slot, session in live.items()
            if (update := session.prompts.waiting) is not None and not session.closed
        ]
        return min(waiting)[1] if waiting else longest

    def _nearly_full(self, runner: ModelRunner, slot: int) -> bool:
        window = runner.config.lm.window
        return (
            self._config.keep_persona
            and runner.position(slot) >= max(NEARLY_FULL * window, self._keep_from[slot])
            and 2 * self._prompts[slot].frames < window
        )

    def advance(self, runner: ModelRunner, slot: int, session: Session, *, keep_text: bool) -> None:
        """Compute one piece of a session's replay; if it has caught up, put it into effect.

        Args:
            runner: The model.
            slot: The session's slot, from ``next_slot``.
            session: The session.
            keep_text: Whether the next text token was forced and must stay.

        Raises:
            SessionFailed: A callback of the client raised.
            Exception: The device has failed.
        """
        update: PromptUpdate | None = None
        # A new prompt that has begun is finished first: with requests without end, none would take
        # effect, and other calls would wait for ever.
        if session.prompts.waiting is not None and not session.prompts.in_progress:
            self._running = None  # frees the memory of a replay that keeps the old persona
            update = session.prompts.begin()
        try:
            if self._running is None:
                self._running = self._begin(runner, slot, session, update)
            running = self._running
            prefix = running.replay.advance(self._config.prefill_chunk)
        except Exception as raised:
            # Nothing of the slot has changed: the old prompt stays in effect.
            self._fail(runner, slot, session, raised)
            return
        if prefix is None:
            return
        runner.swap(slot, prefix, keep_text=keep_text)
        self._running = None
        self._prompts[slot], self._keep_from[slot] = running.prompt, 0
        self._counters.replays += 1
        logger.bind(session=session.id).debug(
            "{}: prompt of {} frames, {} frames of the call remembered",
            "persona kept" if running.update is None else "new prompt in effect",
            running.prompt.frames,
            prefix.length - running.prompt.frames,
        )
        if running.update is not None:
            session.persona = running.update.persona
            session.prompts.finish(None)

    def _begin(
        self, runner: ModelRunner, slot: int, session: Session, update: PromptUpdate | None
    ) -> _Running:
        window = runner.config.lm.window
        if update is None:  # keep_persona
            prompt = self._prompts[slot]
            remembered = remembered_frames(prompt.frames, window, window // 2)
        else:
            prompt = update.prompt
            remembered = remembered_frames(prompt.frames, window, update.history)
        cached = self._prefixes.get(prompt.key)
        replay = Replay(runner, prompt, cached, session.past, remembered)
        return _Running(slot, session, prompt, update, replay)

    def _fail(self, runner: ModelRunner, slot: int, session: Session, raised: Exception) -> None:
        self._synchronize()  # raises if the device has failed
        self._running = None
        if not session.prompts.in_progress:
            # ``keep_persona`` tries again later, not in every pass.
            self._keep_from[slot] = runner.position(slot) + runner.config.lm.window // 8
        error: PersonaPlexError
        if isinstance(raised, PersonaPlexError):
            error = raised
        else:
            error = EngineError(
                f"the new prompt could not be computed: {type(raised).__name__}: {raised}"
            )
            error.__cause__ = raised
        logger.bind(session=session.id).opt(exception=error.__cause__).warning(
            "the old prompt stays in effect: {}", error
        )
        # The client may keep the error. Its traceback would keep the replay's keys and values.
        raised.__traceback__ = None
        session.prompts.finish(error)
