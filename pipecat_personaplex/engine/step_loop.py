"""What the model thread does in a turn: step who has a frame, bring the next prompt forward."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from loguru import logger

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.checkpoint.loader import Checkpoint
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.constants import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    TEXT_EPAD,
    TEXT_PAD,
    ZERO_TOKEN,
)
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.prefill import Prefill, Prefix, PrefixCache
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.engine.stats import Counters
from pipecat_personaplex.engine.step_buffers import StepOutput
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import FrameTimings, SessionFrame
from pipecat_personaplex.models.device import resolve_kv_dtype
from pipecat_personaplex.session import QueuedFrame, Session

_HOST = torch.device("cpu")


class StepLoop:
    """The model, its slots and the sessions in them. Used by one thread; starts none.

    Args:
        checkpoint: A loaded checkpoint.
        config: How to run.
        ended: Called with each session that is over and the error that ended it, or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        ended: Callable[[Session, PersonaPlexError | None], None],
    ):
        self._config = config
        self._ended = ended
        self._device = checkpoint.mimi.frequencies.device
        self._runner = ModelRunner(
            checkpoint.config,
            checkpoint.lm,
            checkpoint.mimi,
            config.max_sessions,
            self._device,
            resolve_kv_dtype(config.kv_dtype, checkpoint.lm.dtype, self._device),
        )
        self._window = checkpoint.config.lm.window
        if config.cuda_graphs:
            self._runner.capture()
        self._pieces = _text_pieces(checkpoint)
        # The batch's audio is laid here, row by row, and handed on without another copy.
        self._staging = np.zeros((config.max_sessions, FRAME_SAMPLES), dtype=np.float32)
        self.prefixes = PrefixCache(config.prefix_cache_bytes)
        self.counters = Counters()
        self.clear()

    def warm_up(self) -> None:
        """Have the thread that will take turns do once what would hold up its first calls.

        A GPU's libraries keep handles and workspaces for each thread.
        """
        if self._device.type == "cuda":
            self._runner.warm_up_prompts(self._config.prefill_chunk)

    def clear(self) -> None:
        """Forget every session: all slots are free."""
        self._scheduler = Scheduler(self._config.max_sessions)

    def turn(self, arrivals: Iterable[PendingSession]) -> bool:
        """Take in new sessions, answer one frame each, compute one run of a prompt.

        Returns:
            Whether there is more to do without waiting.

        Raises:
            Exception: The step failed; the device can no longer be trusted.
        """
        self._scheduler.opening.extend(arrivals)
        for session in self._scheduler.reap():
            self._ended(session, None)
        ready = self._scheduler.ready()
        if ready:
            self._step(ready)
        if self._scheduler.opening:
            self._advance_opening()
        return self._scheduler.busy

    def _step(self, ready: dict[int, Session]) -> None:
        started = time.monotonic()
        taken: list[QueuedFrame] = []
        forced: list[int] = []
        for slot, session in ready.items():
            frame = session.take()
            assert frame is not None, "only the model thread takes frames"
            self._staging[len(taken)] = frame.pcm
            taken.append(frame)
            forced.append(session.take_forced_text())
            sampling = session.take_new_sampling()
            if sampling is not None:
                self._runner.set_sampling(slot, sampling)
        output = self._runner.step(
            # Where steps run elsewhere than here, only the slots are read.
            Batch.of(ready, _HOST),
            torch.from_numpy(self._staging[: len(taken)]),
            torch.tensor(forced) if max(forced) != ZERO_TOKEN else None,
        )
        seconds = time.monotonic() - started
        self.counters.count_step(seconds)
        for row, (session, frame) in enumerate(zip(ready.values(), taken, strict=True)):
            timings = FrameTimings((started - frame.arrived) * 1e3, seconds * 1e3)
            self.counters.frames += 1
            self.counters.late_frames += timings.total_ms > FRAME_SECONDS * 1e3
            with self._failing(session):
                session.deliver(self._session_frame(session, output, row, timings))

    def _session_frame(
        self, session: Session, output: StepOutput, row: int, timings: FrameTimings
    ) -> SessionFrame:
        if not output.finite[row]:
            raise SessionFailed("the model's state is no longer finite; open another session")
        # A copy: a view would keep the whole batch's audio for as long as the frame is kept.
        pcm: Pcm = output.pcm[row].numpy().copy()
        token = int(output.text[row])
        return SessionFrame(
            index=session.next_index,
            pcm=pcm,
            text=self._pieces[token],
            text_token=token,
            agent_codes=output.agent_codes[row].numpy(),
            user_codes=output.user_codes[row].numpy(),
            timings=timings,
        )

    def _advance_opening(self) -> None:
        """Bring a waiting prompt one run forward; running calls step in between.

        A prompt that is kept goes first: its caller need not wait for another's to be computed.
        """
        waiting = self._scheduler.opening
        opening = next((o for o in waiting if o.prompt.key in self.prefixes), waiting[0])
        with self._failing(opening.session):
            prefix = self._prefix(opening)
            if prefix is None:
                return
            slot = self._scheduler.join(opening.session)
            self._runner.join(slot, prefix, opening.session.sampling)
            opening.session.mark_ready()
        waiting.remove(opening)

    def _prefix(self, opening: PendingSession) -> Prefix | None:
        """The state after a prompt, kept or computed; None while there is more to compute."""
        if opening.prefill is None:
            kept = self.prefixes.get(opening.prompt.key)
            if kept is not None:
                return kept
            opening.prefill = Prefill(self._runner.lm, opening.prompt, self._device, self._window)
        # Runs of one length, whoever else is in a call: how a prompt is cut rounds its state.
        prefix = opening.prefill.advance(self._config.prefill_chunk)
        if prefix is not None:
            if not prefix.hidden.isfinite().all():
                raise SessionFailed("the prompt's state is not finite; is the voice file damaged?")
            self.prefixes.put(opening.prompt.key, prefix)
        return prefix

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @contextmanager
    def _failing(self, session: Session) -> Iterator[None]:
        """Let what goes wrong inside end one session, not the engine, unless the device failed.

        Its slot, if it has one, is reaped at the start of the next turn.
        """
        try:
            yield
        except PersonaPlexError as error:
            logger.warning("a session ended: {}", error)
            self._ended(session, error)
        except Exception as error:
            self._synchronize()  # raises where it is the device that failed
            logger.opt(exception=error).warning("a session ended")
            failure = SessionFailed(f"the session failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._ended(session, failure)


def _text_pieces(checkpoint: Checkpoint) -> list[str]:
    """What each text token says: its piece with spaces, or nothing for padding."""
    tokenizer, card = checkpoint.tokenizer, checkpoint.config.lm.text_card
    known = min(card, tokenizer.get_piece_size())
    pieces = [
        "" if tokenizer.is_control(token) else tokenizer.id_to_piece(token).replace("\u2581", " ")
        for token in range(known)
    ]
    pieces += [""] * (card - known)
    pieces[TEXT_EPAD] = pieces[TEXT_PAD] = ""
    return pieces


@dataclass(eq=False)
class PendingSession:
    """A session whose prompt is not in yet."""

    session: Session
    prompt: Prompt
    prefill: Prefill | None = None


class Scheduler:
    """Slots and the sessions in and before them. Used by the model thread alone.

    Args:
        slots: How many there are.
    """

    def __init__(self, slots: int):
        self._free = list(range(slots))
        self.live: dict[int, Session] = {}
        self.opening: deque[PendingSession] = deque()

    def reap(self) -> list[Session]:
        """Take closed sessions out; their slots are free."""
        gone: list[Session] = []
        # Each is asked once: one that closes meanwhile is found the next time.
        for _ in range(len(self.opening)):
            opening = self.opening.popleft()
            if opening.session.closed:
                gone.append(opening.session)
            else:
                self.opening.append(opening)
        for slot in [slot for slot, session in self.live.items() if session.closed]:
            gone.append(self.live.pop(slot))
            self._free.append(slot)
        return gone

    def join(self, session: Session) -> int:
        """Give a session the lowest free slot, so that batches stay runs of neighbours."""
        slot = min(self._free)
        self._free.remove(slot)
        self.live[slot] = session
        return slot

    def ready(self) -> dict[int, Session]:
        """Every live session that has a full frame, in slot order: they step together."""
        return {slot: self.live[slot] for slot in sorted(self.live) if self.live[slot].has_frame()}

    @property
    def busy(self) -> bool:
        """Whether there is anything to do without waiting."""
        return bool(self.opening) or any(s.has_frame() or s.closed for s in self.live.values())
