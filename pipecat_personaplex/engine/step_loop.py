"""The model thread's loop: step every session that has a frame, then advance one computation."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from loguru import logger

from pipecat_personaplex.audio import Pcm, QueuedFrame
from pipecat_personaplex.checkpoint.loader import Checkpoint
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.constants import (
    FRAME_SAMPLES,
    FRAME_SECONDS,
    MAX_PROMPT_FRAMES,
    TEXT_EPAD,
    TEXT_PAD,
    ZERO_TOKEN,
)
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.memory_plan import room_for_sessions
from pipecat_personaplex.engine.model_runner import ModelRunner
from pipecat_personaplex.engine.pending import PendingSession
from pipecat_personaplex.engine.prefill import PrefixCache
from pipecat_personaplex.engine.replay import Replays
from pipecat_personaplex.engine.stats import Counters
from pipecat_personaplex.engine.step_buffers import StepOutput
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import FrameTimings, SessionFrame
from pipecat_personaplex.models.device import resolve_kv_dtype
from pipecat_personaplex.session import Session

_HOST = torch.device("cpu")

_Delivery = tuple[Session, StepOutput, int, Pcm, FrameTimings]
"""A session, the step's output and its row there, the caller's frame, and its timings."""


class StepLoop:
    """The model, its slots and their sessions. Used by one thread; starts none.

    A session is pending until the state after its prompt is written into a free slot, and live
    until it is closed or fails.

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
        self._context = checkpoint.config.lm.context
        kv_dtype = resolve_kv_dtype(
            config.kv_dtype, checkpoint.lm.dtype, self._device, checkpoint.quantization
        )
        with room_for_sessions(config.max_sessions):
            self._runner = ModelRunner(
                checkpoint.config,
                checkpoint.lm,
                checkpoint.mimi,
                config.max_sessions,
                self._device,
                kv_dtype,
            )
        if config.cuda_graphs:
            self._runner.capture()
        self._text_pieces = _text_pieces(checkpoint)
        # Frames of a batch are copied here row by row, so that the step gets one array [B, 1920].
        self._staging = np.zeros((config.max_sessions, FRAME_SAMPLES), dtype=np.float32)
        self.prefixes = PrefixCache(config.prefix_cache_bytes)
        self.counters = Counters()
        self._replays = Replays(config, self.prefixes, self.counters, self._synchronize)
        self.clear()

    def clear(self) -> None:
        """Forget every session; all slots are free."""
        self._free_slots = list(range(self._config.max_sessions))
        self._live: dict[int, Session] = {}
        # Bounded by the engine, which admits no more sessions than there are slots.
        self._pending: deque[PendingSession] = deque()
        self._replays.clear()
        # Frames of the last step that are not delivered yet. At the start of a pass there are some
        # only if the thread before was given up in the middle of delivering.
        self._undelivered: deque[_Delivery] = deque()
        # Slots whose next text token was given, not sampled by the model alone.
        self._forced_slots: set[int] = set()
        self._replay_is_next = False

    def warm_up(self) -> None:
        """Prepare the calling thread for steps; call it on the model thread.

        GPU libraries create handles and workspaces per thread, which would delay the first calls.
        """
        if self._device.type == "cuda":
            longest = max(self._runner.config.lm.window, MAX_PROMPT_FRAMES)
            self._runner.warm_up_prompts(min(self._config.prefill_chunk, longest))

    def run_once(self, arrivals: Iterable[PendingSession]) -> bool:
        """Admit new sessions, step all that have a frame, and compute one piece of a prompt.

        The piece belongs to a pending session's prompt or to a live session's replay, in turns if
        there are both.

        Returns:
            Whether there is more to do without waiting.

        Raises:
            Exception: The step failed; the device must no longer be trusted.
        """
        self._admit(arrivals)  # first: a callback that blocks ends this thread in ``_deliver``
        self._deliver()
        self._release_closed()
        ready = self._ready_sessions()
        if ready:
            self._step(ready)
        slot = self._replays.next_slot(self._runner, self._live)
        if slot is not None and (self._replay_is_next or not self._pending):
            self._replay_is_next = False
            self._advance_replay(slot)
        elif self._pending:
            self._replay_is_next = True
            self._advance_prompt()
        if slot is not None or self._pending:
            # The thread would otherwise queue many pieces on the device in front of the next step.
            self._synchronize()
        return slot is not None or self._has_work()

    # Sessions and slots.

    def _admit(self, arrivals: Iterable[PendingSession]) -> None:
        for pending in arrivals:
            self._pending.append(pending)
            session = pending.session
            logger.bind(session=session.id).debug(
                "session opened: voice {}, prompt of {} frames",
                session.persona.voice,
                pending.prompt.frames,
            )
            if pending.prompt.frames >= self._context:
                # The user chose a configured context; a small checkpoint has no other.
                logger.bind(session=session.id).log(
                    "WARNING" if self._config.context else "DEBUG",
                    "the prompt of {} frames does not fit into the context {}: its start is "
                    "forgotten",
                    pending.prompt.frames,
                    self._context,
                )

    def _release_closed(self) -> None:
        """End the sessions that have been closed and free their slots."""
        # Read ``closed`` once per session: another thread may close it at any moment, and the
        # next pass then finds it.
        for _ in range(len(self._pending)):
            pending = self._pending.popleft()
            if pending.session.closed:
                self._end(pending.session)
            else:
                self._pending.append(pending)
        for slot in [slot for slot, session in self._live.items() if session.closed]:
            session = self._live.pop(slot)
            self._free_slots.append(slot)
            self._replays.session_ended(slot)
            self._end(session)

    def _end(self, session: Session) -> None:
        """Report the end of a closed session, unless its error has been reported."""
        if session.error is not None:
            return
        stats = session.stats()
        logger.bind(session=session.id).debug(
            "session closed after {} frames, {} late, {} dropped",
            stats.frames,
            stats.late_frames,
            stats.dropped_frames,
        )
        self._ended(session, None)

    def _ready_sessions(self) -> dict[int, Session]:
        """Every live session that has a full frame, by slot in ascending order."""
        return {
            slot: self._live[slot] for slot in sorted(self._live) if self._live[slot].has_frame()
        }

    def _has_work(self) -> bool:
        return bool(self._pending) or any(
            session.has_frame() or session.closed or session.prompts.waiting
            for session in self._live.values()
        )

    # One frame of every session that has one.

    def _step(self, ready: dict[int, Session]) -> None:
        started = time.monotonic()
        frames, forced_text = self._take_inputs(ready)
        output = self._runner.step(
            # On the host: only an eager step on a CPU uses the index tensor.
            Batch.of(ready, _HOST),
            torch.from_numpy(self._staging[: len(frames)]),  # [B, 1920]
            torch.tensor(forced_text) if forced_text is not None else None,  # [B]
        )
        seconds = time.monotonic() - started
        self.counters.count_step(seconds)
        for row, (session, frame) in enumerate(zip(ready.values(), frames, strict=True)):
            timings = FrameTimings((started - frame.arrived) * 1e3, seconds * 1e3)
            self.counters.frames += 1
            self.counters.late_frames += timings.total_ms > FRAME_SECONDS * 1e3
            self._undelivered.append((session, output, row, frame.pcm, timings))
        self._deliver()

    def _deliver(self) -> None:
        """Pass the frames of the last step to their sessions, each one once."""
        while self._undelivered:
            session, output, row, caller, timings = self._undelivered.popleft()
            with self._contain_failure(session):
                output_frame = self._session_frame(session, output, row, timings)
                session.past.add(output_frame, caller)
                session.deliver(output_frame, next_text=int(output.next_text[row]))

    def _take_inputs(self, ready: dict[int, Session]) -> tuple[list[QueuedFrame], list[int] | None]:
        """Take each session's frame, forced text and new sampling parameters.

        Returns:
            The frames, whose audio is in the staging array, and the codes of
            ``StepInput.forced_text``; None if every session samples.
        """
        frames: list[QueuedFrame] = []
        forced_text: list[int] = []
        for slot, session in ready.items():
            frame = session.take()
            assert frame is not None, "only the model thread takes frames"
            self._staging[len(frames)] = frame.pcm
            frames.append(frame)
            forced_text.append(session.next_forced_text(frame.pcm))
            self._forced_slots.discard(slot)
            if forced_text[-1] != ZERO_TOKEN:
                self._forced_slots.add(slot)
            sampling = session.take_new_sampling()
            if sampling is not None:
                with self._contain_failure(session):
                    self._runner.set_sampling(slot, sampling)
        forces = any(code != ZERO_TOKEN for code in forced_text)
        return frames, forced_text if forces else None

    def _session_frame(
        self, session: Session, output: StepOutput, row: int, timings: FrameTimings
    ) -> SessionFrame:
        if not output.finite[row]:
            raise SessionFailed("the model's state is no longer finite; open another session")
        # A copy: a view would hold the audio of the whole batch as long as the frame exists.
        pcm: Pcm = output.pcm[row].numpy().copy()
        token = int(output.text[row])
        return SessionFrame(
            index=session.next_index,
            pcm=pcm,
            text=self._text_pieces[token],
            text_token=token,
            agent_codes=output.agent_codes[row].numpy(),
            user_codes=output.user_codes[row].numpy(),
            timings=timings,
        )

    # One piece of one prompt.

    def _advance_prompt(self) -> None:
        """Compute one piece of a pending session's prompt; if it is complete, start the session.

        Live sessions step between the pieces. A session whose prefix is cached goes first, because
        it needs no computation.
        """
        pending = next(
            (p for p in self._pending if p.history is None and p.prompt.key in self.prefixes),
            self._pending[0],
        )
        session = pending.session
        with self._contain_failure(session):
            prefix = pending.advance(self._runner, self.prefixes, self._config.prefill_chunk)
            if prefix is None:
                return
            # The lowest free slot: consecutive slots are sliced instead of gathered.
            slot = min(self._free_slots)
            self._free_slots.remove(slot)
            self._live[slot] = session
            self._replays.session_started(slot, pending.prompt)
            self._forced_slots.discard(slot)
            self._runner.join(slot, prefix, session.sampling, pending.warm_up)
            logger.bind(session=session.id).debug("session ready in slot {}", slot)
            # Before the callback, which another thread may not wait for. After a failure the next
            # pass removes it: the session is closed.
            self._pending.remove(pending)
            session.mark_ready()

    def _advance_replay(self, slot: int) -> None:
        """Compute one piece of a live session's new state; see ``engine.replay``."""
        session = self._live[slot]
        with self._contain_failure(session):
            self._replays.advance(self._runner, slot, session, keep_text=slot in self._forced_slots)

    # Failures.

    @contextmanager
    def _contain_failure(self, session: Session) -> Iterator[None]:
        """Let an error inside end this session only, unless the device has failed.

        The session's slot, if any, is freed at the start of the next pass.
        """
        log = logger.bind(session=session.id)
        try:
            yield
        except PersonaPlexError as error:
            # The cause is what a callback has raised, if it was a callback.
            log.opt(exception=error.__cause__).warning("session ended with an error: {}", error)
            self._ended(session, error.with_traceback(None))
        except Exception as error:
            self._synchronize()  # raises if the device has failed
            log.opt(exception=error).warning("session ended with an unexpected error")
            failure = SessionFailed(f"the session failed: {type(error).__name__}: {error}")
            # The client may keep the session. The traceback would keep its keys and values.
            failure.__cause__ = error.with_traceback(None)
            self._ended(session, failure)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _text_pieces(checkpoint: Checkpoint) -> list[str]:
    """The text of each text token: its piece with spaces, or "" for padding and control tokens."""
    tokenizer, card = checkpoint.tokenizer, checkpoint.config.lm.text_card
    known = min(card, tokenizer.get_piece_size())
    pieces = [
        "" if tokenizer.is_control(token) else tokenizer.id_to_piece(token).replace("\u2581", " ")
        for token in range(known)
    ]
    pieces += [""] * (card - known)
    pieces[TEXT_EPAD] = pieces[TEXT_PAD] = ""
    return pieces
