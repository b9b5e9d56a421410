"""One batched 80 ms step: encode, temporal transformer, depth transformer, decode."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.constants import AGENT_CODES, STREAMS, TEXT
from pipecat_personaplex.engine.batch import Batch, HostPositions
from pipecat_personaplex.engine.codec_slots import CodecSlots
from pipecat_personaplex.engine.cuda_graphs import Capturer, CudaCapturer, FixedStep, spare_slots
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.prefill import Prefill, Prefix
from pipecat_personaplex.engine.prompt import Prompt
from pipecat_personaplex.engine.sampling import CandidateCounts, SamplerState
from pipecat_personaplex.engine.step_buffers import StepOutput, StepResult
from pipecat_personaplex.engine.token_grid import TokenGrid
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import initial_column
from pipecat_personaplex.models.device import prepare_device
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi

# The kernels' products take a prompt's positions 16, 32 or 64 at a time, and fewer outputs at a
# time where that alone would be too few programs.
_PROMPT_LENGTHS = (8, 24, 64, 128, 256)


class ModelRunner:
    """The model and the state of every slot. Used by one thread.

    Args:
        config: The checkpoint's.
        lm: The language model, on its device.
        mimi: The codec, on the same device.
        slots: Sessions at once.
        device: Where everything lives.
        kv_dtype: In which the language model's keys and values are kept; its own if not given.
        fixed: Whether steps run at fixed shapes and addresses, so that they can be captured; on
            CUDA if not given. A CPU is faster without.
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
        if fixed is None:
            fixed = device.type == "cuda"
        self.config = config
        self.lm = lm
        self.mimi = mimi
        self.device = device
        # Rows that fill a batch up step into one slot more, which nobody owns. Where none ever
        # does, the step is captured in slot 0, before anybody owns that.
        callers, spare = slots, spare_slots(slots) if fixed else 0
        self._spare = spare > 0
        self._scratch = callers if spare else 0
        slots += spare
        self._kv = RingCache.for_lm(
            lm, slots, device, window=config.lm.window, kv_dtype=kv_dtype, masked=fixed
        )
        self._codec = CodecSlots(mimi, slots, device, masked=fixed)
        self._grid = TokenGrid(slots, config, device)
        self._sampler = SamplerState.on(device, slots, config.lm)
        # Where each slot's conversation starts and how many frames it has had: on the device
        # for the step, on the host for what shapes depend on.
        self._prompt = torch.zeros(slots, dtype=torch.int64, device=device)
        self._frames = torch.zeros(slots, dtype=torch.int64, device=device)
        self._host_prompt = [0] * slots
        self._host_frames = [0] * slots
        self._primed = self._primed_codec()
        self._fixed = None
        if fixed:
            self._reset([self._scratch])
            self._fixed = FixedStep(
                self._answer_fixed, callers, self._scratch, self._sampler.fixed, device
            )

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot with a full window."""
        slots = len(self._host_frames)
        return (self._kv.nbytes + self._codec.nbytes) // slots

    @property
    def graph_bytes(self) -> int:
        """Memory that captured steps take of the device."""
        return 0 if self._fixed is None else self._fixed.graph_bytes

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from graphs."""
        return self._fixed is not None and self._fixed.captured

    def capture(self, capturer: Capturer | None = None) -> None:
        """Capture the step for every batch size, where the device has graphs; else do nothing.

        Before the first session: it takes seconds. What cannot be captured runs without, and
        that is logged.

        Args:
            capturer: Records the step; by default in CUDA graphs.
        """
        if self._fixed is None:
            return
        if capturer is None and self.device.type == "cuda":
            capturer = CudaCapturer(self.device)
        if capturer is not None:
            self._fixed.capture(capturer, self._reset)

    def warm_up_prompts(self, longest: int) -> None:
        """Compute prompts of each length that has kernels of its own, up to ``longest``.

        So that none has to be compiled while calls run.
        """
        for frames in (*(length for length in _PROMPT_LENGTHS if length < longest), longest):
            columns = initial_column(self.config).repeat(frames + 1, 1)
            prompt = Prompt(("warm up", ()), columns, None)
            Prefill(self.lm, prompt, self.device, self.config.lm.window).advance(frames)

    @torch.inference_mode()
    def _reset(self, slots: Iterable[int]) -> None:
        """Make slots new that nobody owns."""
        # Not what a conversation starts with: that cannot be said.
        column = torch.zeros(STREAMS, dtype=torch.int64, device=self.device)
        for slot in slots:
            self._codec.start(slot, self._primed)
            self._frames[slot] = 0
            self._grid.start(slot, column)

    @torch.inference_mode()
    def _primed_codec(self) -> CodecSlots:
        """A fresh codec whose decoder has said the reference's first, silent frame.

        The reference emits the prompt's last frame before the conversation; decoding it here
        and dropping the sound makes the audio that follows match it sample for sample.
        """
        codec = CodecSlots(self.mimi, 1, self.device)
        batch = Batch.of([0], self.device)
        silence = torch.tensor([self.config.silence_codes], device=self.device)
        codec.decode(batch, silence, [0], torch.zeros(1, dtype=torch.int64, device=self.device))
        return codec

    def join(self, slot: int, prefix: Prefix, sampling: SamplingParams) -> None:
        """Start a conversation in a slot; nothing of its last owner remains visible."""
        self.restore(slot, prefix, sampling)
        self.draw_first(slot, prefix)

    @torch.inference_mode()
    def restore(self, slot: int, prefix: Prefix, sampling: SamplingParams) -> None:
        """Lay the state after a prompt into a slot, over whatever was there."""
        self._kv.clear(slot)
        self._kv.write(slot, prefix.first, prefix.keys, prefix.values)
        self._codec.start(slot, self._primed)
        self._sampler.set(slot, sampling)
        self._prompt[slot] = self._host_prompt[slot] = prefix.length
        self._frames[slot] = self._host_frames[slot] = 0

    @torch.inference_mode()
    def draw_first(self, slot: int, prefix: Prefix) -> None:
        """Draw text and semantic code of the first live position, from the prompt's end.

        So the caller's first frame is answered at once, a frame sooner than in the reference.
        """
        batch = Batch.of([slot], self.device)
        draw = self._sampler.frame(batch, self._frames[batch.rows])
        hidden = prefix.hidden[None]
        text = draw.text(self.lm.text_logits(hidden))
        semantic = self.lm.depth(hidden, text, draw.audio, steps=1)
        column = prefix.column.clone()
        column[TEXT] = text[0]
        column[AGENT_CODES.start] = semantic[0, 0]
        self._grid.start(slot, column)

    def age(self, slot: int, frames: int) -> None:
        """Make a call that has joined ``frames`` old without stepping there, for measurements.

        Its place in the window stays, so that the prompt becomes so much shorter.
        """
        self._codec.age(slot)
        self._prompt[slot] -= frames
        self._host_prompt[slot] -= frames
        self._frames[slot] = self._host_frames[slot] = frames

    def set_sampling(self, slot: int, sampling: SamplingParams) -> None:
        """Draw a slot's tokens with these parameters from the next step on."""
        self._sampler.set(slot, sampling)

    @torch.inference_mode()
    def step(self, batch: Batch, pcm: Tensor, forced_text: Tensor | None = None) -> StepOutput:
        """Answer one frame of each session in ``batch``.

        Args:
            batch: The slots that have a frame; at fixed shapes, nothing else of it is read.
            pcm: Their audio in slot order, float32 [B, 1920], 24 kHz, on the host.
            forced_text: Text tokens that stand in for drawn ones, [B] int64; -1 draws.
        """
        if self._fixed is not None:
            wanted = self._sampler.wanted(batch.slots)
            return self._fixed.step(batch.slots, pcm, forced_text, wanted)
        ages = HostPositions(
            [self._host_frames[slot] for slot in batch.slots],
            [self._host_prompt[slot] + self._host_frames[slot] for slot in batch.slots],
        )
        answer = self._answer(batch, pcm, forced_text, None, ages)
        for slot in batch.slots:
            self._host_frames[slot] += 1
        return StepOutput.of(answer.tokens(), answer.audio)

    def _answer_fixed(
        self, batch: Batch, pcm: Tensor, forced_text: Tensor, widths: CandidateCounts
    ) -> StepResult:
        answer = self._answer(batch, pcm, forced_text, widths, None)
        if self._spare:
            # Rows that nobody owns never have a past to attend to.
            self._frames[self._scratch].zero_()
        return answer

    def _answer(
        self,
        batch: Batch,
        pcm: Tensor,
        forced_text: Tensor | None,
        widths: CandidateCounts | None,
        ages: HostPositions | None,
    ) -> StepResult:
        """``step`` with everything on the device.

        With ``widths`` and without ``ages``, nothing it does depends on what the host knows.
        """
        rows = batch.rows
        frames = self._frames[rows]
        user_codes = self._codec.encode(batch, pcm, ages and ages.frames, frames)

        column = self._grid.input_column(rows, user_codes)
        positions = self._prompt[rows] + frames
        kv = self._kv.at(batch, ages and ages.positions, positions)
        hidden = self.lm(self.lm.embed(column)[:, None], positions[:, None], kv)[:, 0]

        draw = self._sampler.frame(batch, frames + 1, widths)
        text = draw.text(self.lm.text_logits(hidden))
        if forced_text is not None:
            text = torch.where(forced_text < 0, text, forced_text)
        agent_codes = self.lm.depth(hidden, text, draw.audio)
        said = self._grid.advance(rows, column, text, agent_codes, user_codes)

        # The decoder is one frame ahead: it has said the silent one.
        decoded = ages and [frame + 1 for frame in ages.frames]
        audio = self._codec.decode(batch, said.agent_codes, decoded, frames + 1)

        self._frames[rows] = frames + 1
        return StepResult(said, audio, hidden.isfinite().all(dim=1))
