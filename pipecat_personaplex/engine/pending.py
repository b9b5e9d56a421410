"""A session that has no slot yet, and what must be computed before it gets one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipecat_personaplex.constants import AGENT_CODES, FRAME_SAMPLES
from pipecat_personaplex.engine.codec_slots import CodecWarmUp
from pipecat_personaplex.engine.history import WARM_UP_FRAMES
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import Prompt, extend_prompt
from pipecat_personaplex.engine.replay import remembered_frames
from pipecat_personaplex.errors import SessionFailed
from pipecat_personaplex.interface import CallHistory
from pipecat_personaplex.session import Session

# Running sessions wait while the codec processes this many frames, one by one.
_WARM_UP_CHUNK = 2


@dataclass(eq=False)
class PendingSession:
    """A session whose prompt is still to be computed.

    Attributes:
        session: The session.
        prompt: Its prompt.
        history: The call that it continues, if any, which follows the prompt.
        warm_up: The state of its codec, if it continues a call.
    """

    session: Session
    prompt: Prompt
    history: CallHistory | None = None
    warm_up: CodecWarmUp | None = None
    _prefill: Prefill | None = field(default=None, init=False)
    _prefix: Prefix | None = field(default=None, init=False)

    def advance(self, runner: ModelRunner, prefixes: PrefixCache, chunk: int) -> Prefix | None:
        """Compute one piece, or take the prompt's state from the cache.

        Args:
            runner: The model.
            prefixes: Cached prompts. A prompt without a call is added.
            chunk: Positions of one piece. It must not depend on the load, because it changes how
                the state is rounded.

        Returns:
            The state with which the session starts; None while there is more to compute.

        Raises:
            SessionFailed: The state is not finite.
        """
        if self._prefix is None:
            if self._prefill is None:
                cached = prefixes.get(self.prompt.key)
                if cached is not None and self.history is None:
                    return cached
                self._prefill = self._new_prefill(runner, cached)
            self._prefix = self._prefill.advance(chunk)
            if self._prefix is None:
                return None
            if not self._prefix.hidden.isfinite().all():
                raise SessionFailed("the prompt's state is not finite; is the voice file damaged?")
            if self.history is None:
                prefixes.put(self.prompt.key, self._prefix)
                return self._prefix
            self.warm_up = _new_warm_up(runner, self.history)
        assert self.warm_up is not None
        return self._prefix if self.warm_up.advance(_WARM_UP_CHUNK) else None

    def _new_prefill(self, runner: ModelRunner, cached: Prefix | None) -> Prefill:
        prompt, window = self.prompt, runner.config.lm.window
        if self.history is not None:
            tokens = self.history.tokens
            count = remembered_frames(prompt.frames, window, len(tokens))
            newest = torch.from_numpy(tokens[len(tokens) - count :]).long()  # [count, 17]
            prompt = extend_prompt(prompt, newest, runner.config)
        return Prefill(runner.lm, prompt, runner.device, window, start=cached)


def _new_warm_up(runner: ModelRunner, history: CallHistory) -> CodecWarmUp:
    pcm = torch.from_numpy(history.caller).view(-1, FRAME_SAMPLES)  # [m, 1920]
    codes = torch.from_numpy(history.tokens).long()[:, AGENT_CODES]  # [n, 8]
    frames = min(WARM_UP_FRAMES, len(pcm), len(codes))
    return CodecWarmUp(
        runner.frame_step.codec.mimi,
        runner.config.silence_codes,
        pcm[len(pcm) - frames :].to(runner.device),
        codes[len(codes) - frames :].to(runner.device),
        dc_blocker=runner.config.dc_blocker,
    )
