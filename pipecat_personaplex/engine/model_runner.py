"""Starts sessions in slots and runs their steps, eagerly or replayed from graphs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import AGENT_CODES, STREAMS, TEXT
from pipecat_personaplex.engine.batch import Batch, HostPositions
from pipecat_personaplex.engine.codec_slots import CodecSlots, CodecWarmUp
from pipecat_personaplex.engine.cuda_graphs import Capturer, CudaCapturer, FixedStep, spare_slots
from pipecat_personaplex.engine.prefill import Prefill, Prefix
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.engine.sampling import CandidateCounts
from pipecat_personaplex.engine.step import FrameStep
from pipecat_personaplex.engine.step_buffers import StepInput, StepOutput, StepResult
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.device import prepare_device
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from pipecat_personaplex.models.module import bind_members

# Prompt lengths that select different GEMM kernels: tiles of 16, 32 or 64 positions, and narrower
# output tiles where these alone would give too few programs.
_PROMPT_LENGTHS = (8, 24, 64, 128, 256)


class ModelRunner:
    """Runs the model for all slots. Used by one thread.

    Args:
        config: The checkpoint's configuration.
        lm: The language model, on ``device``.
        mimi: The codec, on ``device``.
        slots: The largest number of concurrent sessions.
        device: Device of the model and of all state.
        kv_dtype: Storage type of the language model's keys and values; ``lm.dtype`` if not given.
        fixed: Whether steps run at fixed shapes and addresses, so that they can be captured.
            Defaults to True on CUDA only: a CPU is faster with shapes that follow the sessions.
    """

    def __init__(
        self,
        config: ModelConfig,
        lm: PersonaPlexLM,
        mimi: Mimi,
        slots: int,
        device: torch.device,
        kv_dtype: torch.dtype | None = None,
        *,
        fixed: bool | None = None,
    ):
        prepare_device(device)
        bind_members(lm)
        bind_members(mimi)
        if fixed is None:
            fixed = device.type == "cuda"
        self.config = config
        self.lm = lm
        self.device = device
        # Padding rows step into one extra slot that no session uses. If every batch size is
        # captured there is no padding; slot 0 then serves for the capture, before any session.
        spare = spare_slots(slots) if fixed else 0
        self._spare = spare > 0
        self._scratch = slots if spare else 0
        self.frame_step = FrameStep.new(
            config, lm, mimi, slots + spare, device, kv_dtype=kv_dtype, masked=fixed
        )
        # Copies of ``FrameStep.prompt_frames`` and ``frames``: shapes of an eager step depend on
        # them, and reading them from the device would wait for it.
        self._host_prompt_frames = [0] * self.frame_step.slots
        self._host_frames = [0] * self.frame_step.slots
        self._primed = CodecSlots.primed(
            mimi, config.silence_codes, device, dc_blocker=config.dc_blocker
        )
        self._fixed = None
        if fixed:
            self._reset([self._scratch])
            counts = self.frame_step.sampler.fixed_counts
            self._fixed = FixedStep(self._run_fixed, slots, self._scratch, counts, device)

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot in bytes, with a full window."""
        return self.frame_step.slot_bytes

    @property
    def graph_bytes(self) -> int:
        """Device memory of captured steps in bytes."""
        return 0 if self._fixed is None else self._fixed.graph_bytes

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from graphs."""
        return self._fixed is not None and self._fixed.captured

    def capture(self, capturer: Capturer | None = None) -> None:
        """Capture the step for every batch size, if the device supports graphs.

        Call it before the first session; it takes seconds and steps every slot. If a capture
        fails, the reason is logged and steps run without graphs.

        Args:
            capturer: Records the step; by default into CUDA graphs.
        """
        if self._fixed is None:
            return
        if capturer is None and self.device.type == "cuda":
            capturer = CudaCapturer(self.device)
        if capturer is not None:
            self._fixed.capture(capturer, self._reset)

    def warm_up_prompts(self, longest: int) -> None:
        """Compute a prompt of every length that selects other kernels, up to ``longest`` frames.

        This compiles the kernels now instead of during calls.
        """
        for frames in (*(length for length in _PROMPT_LENGTHS if length < longest), longest):
            columns = initial_column(self.config).repeat(frames + 1, 1)
            prompt = Prompt(("warm up", ()), columns, None)
            Prefill(self.lm, prompt, self.device, self.config.lm.window).advance(frames)

    @torch.inference_mode()
    def _reset(self, slots: Iterable[int]) -> None:
        """Reset slots that no session uses to a fresh state."""
        # Zeros, because the step decodes the column's codes: the initial tokens are outside the
        # codec's codebooks.
        column = torch.zeros(STREAMS, dtype=torch.int64, device=self.device)
        for slot in slots:
            self.frame_step.codec.start(slot, self._primed)
            self.frame_step.frames[slot] = 0
            self.frame_step.grid.start(slot, column)

    def join(
        self,
        slot: int,
        prefix: Prefix,
        sampling: SamplingParams,
        warm_up: CodecWarmUp | None = None,
    ) -> None:
        """Start a session in a slot; nothing of the slot's previous session remains visible.

        Args:
            slot: The slot.
            prefix: The state after the prompt, and after the call that the session continues.
            sampling: How tokens are sampled.
            warm_up: The codec's state after the newest frames of that call; None for a new call.
        """
        self.restore(slot, prefix, sampling, warm_up)
        self.sample_first(slot, prefix)

    @torch.inference_mode()
    def restore(
        self,
        slot: int,
        prefix: Prefix,
        sampling: SamplingParams,
        warm_up: CodecWarmUp | None = None,
    ) -> None:
        """Write the state after a prompt into a slot, over the state of its previous session."""
        step = self.frame_step
        codec, frames = self._primed, 0
        if warm_up is not None:
            # The codec's positions are counted by ``frames``: they include the warm-up.
            codec, frames = warm_up.codec, warm_up.frames
        step.codec.start(slot, codec, frames)
        step.sampler.set(slot, sampling)
        step.frames[slot] = self._host_frames[slot] = frames
        self._write_prefix(slot, prefix)

    def _write_prefix(self, slot: int, prefix: Prefix) -> None:
        """Write keys and values into a slot, and continue at the position behind them."""
        step = self.frame_step
        step.kv.clear(slot)
        step.kv.write(slot, prefix.first, prefix.keys, prefix.values)
        # The next position is ``prompt_frames + frames``. Of a call that has lasted longer than
        # it is remembered, ``prompt_frames`` is negative.
        prompt_frames = prefix.length - self._host_frames[slot]
        step.prompt_frames[slot] = self._host_prompt_frames[slot] = prompt_frames

    @torch.inference_mode()
    def swap(self, slot: int, prefix: Prefix, *, keep_text: bool = False) -> None:
        """Replace what a running session attends to, between two of its steps.

        Codec, sampler and frame count go on. All state stays at its addresses, so captured steps
        need no change.

        Args:
            slot: The session's slot.
            prefix: The state after a prompt and the session's newest frames.
            keep_text: Whether the text token of the next frame stays, because it was forced.
        """
        self._write_prefix(slot, prefix)
        self.sample_first(slot, prefix, keep_text=keep_text)

    def position(self, slot: int) -> int:
        """The position that a slot runs next: frames of its prompt and its call together."""
        return self._host_prompt_frames[slot] + self._host_frames[slot]

    @torch.inference_mode()
    def sample_first(self, slot: int, prefix: Prefix, *, keep_text: bool = False) -> None:
        """Sample text and semantic code of the next position from a prefix's last state.

        The caller's first frame then completes a column and gives audio at once, one frame
        earlier than in the reference. The noise is that of the slot's frame: after ``swap``, the
        same state gives the tokens that the last step has sampled.
        """
        step = self.frame_step
        batch = Batch.of([slot], self.device)
        sampler = step.sampler.frame(batch, step.frames[batch.rows])
        hidden = prefix.hidden[None]  # [1, D]
        text = step.grid.text(batch.rows)  # [1]
        if not keep_text:
            text = sampler.text(self.lm.text_logits(hidden))  # [1]
        semantic = self.lm.depth(hidden, text, sampler.audio, steps=1)  # [1, 1]
        column = prefix.column.clone()  # [17]
        column[TEXT] = text[0]
        column[AGENT_CODES.start] = semantic[0, 0]
        step.grid.start(slot, column)

    def skip_ahead(self, slot: int, frames: int) -> None:
        """Set a joined session's age to ``frames`` without stepping; for measurements.

        Its position in the window stays the same, so its prompt counts as shorter by ``frames``.
        """
        step = self.frame_step
        step.codec.fill_with_zeros(slot)
        step.prompt_frames[slot] -= frames
        self._host_prompt_frames[slot] -= frames
        step.frames[slot] = self._host_frames[slot] = frames

    def set_sampling(self, slot: int, sampling: SamplingParams) -> None:
        """Sample a slot's tokens with these parameters from the next step on."""
        self.frame_step.sampler.set(slot, sampling)

    @torch.inference_mode()
    def step(self, batch: Batch, pcm: Tensor, forced_text: Tensor | None = None) -> StepOutput:
        """Compute one frame of each session in ``batch``.

        Args:
            batch: The slots that have a frame. A step at fixed shapes reads ``slots`` only.
            pcm: Their audio in slot order, float32 [B, 1920], 24 kHz, on the host.
            forced_text: As ``StepInput.forced_text``, [B] int64; None samples for all.
        """
        for slot in batch.slots:
            self._host_frames[slot] += 1
        counts = self.frame_step.sampler.requested_counts(batch.slots)
        if self._fixed is not None:
            return self._fixed.step(batch.slots, pcm, forced_text, counts)
        return self._run_eager(batch, pcm, forced_text, counts)

    def _run_eager(
        self, batch: Batch, pcm: Tensor, forced_text: Tensor | None, counts: CandidateCounts
    ) -> StepOutput:
        """Run a step whose shapes follow the batch and the length of each session."""
        frames = [self._host_frames[slot] - 1 for slot in batch.slots]  # before this one
        host = HostPositions(
            encoded=frames,
            decoded=[count + 1 for count in frames],
            positions=[
                self._host_prompt_frames[slot] + count
                for slot, count in zip(batch.slots, frames, strict=True)
            ],
        )
        result = self.frame_step.run(StepInput(batch, pcm, forced_text, counts, host))
        return StepOutput.of(result.tokens(), result.audio)

    def _run_fixed(self, step: StepInput) -> StepResult:
        """Run a step at fixed shapes; this call is what a graph captures."""
        result = self.frame_step.run(step)
        if self._spare:
            # Padding rows stay at frame 0: their attention never grows beyond one position.
            self.frame_step.frames[self._scratch].zero_()
        return result
