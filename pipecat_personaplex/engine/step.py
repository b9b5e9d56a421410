"""The 80 ms step: one frame of the callers' audio in, one frame of the agents' text and audio out.

The same code runs eagerly and inside a captured graph. ``StepInput`` carries what differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipecat_personaplex.constants import TEXT_PAD
from pipecat_personaplex.engine.codec_slots import CodecSlots
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.sampling import SamplerState
from pipecat_personaplex.engine.step_buffers import StepInput, StepResult
from pipecat_personaplex.engine.token_grid import TokenGrid
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi


def force_text(sampled: Tensor, forced: Tensor) -> Tensor:
    """Replace sampled text tokens as ``StepInput.forced_text`` requires.

    Args:
        sampled: The model's own samples, [B] int64.
        forced: [B] int64: f >= 0 forces token f, -1 keeps the sample, and f <= -2 places token
            -2 - f where the sample is a word.

    Returns:
        The text tokens, [B] int64.
    """
    # Token of f >= 0: f. Token of f <= -2: -2 - f. Of f = -1 both are -1, which keeps the sample.
    in_word = torch.maximum(forced, -2 - forced)  # [B]
    # Padding and control tokens are the ids up to TEXT_PAD, so that one comparison finds a word.
    token = torch.where(sampled > TEXT_PAD, in_word, forced)  # [B]
    return torch.where(token < 0, sampled, token)


@dataclass(frozen=True)
class FrameStep:
    """The model, and the device state of every slot that a step reads and writes.

    Attributes:
        lm: The language model: temporal transformer, text head and depth transformer.
        codec: Mimi's streaming state.
        kv: The temporal transformer's keys and values, one ring per slot and layer.
        grid: The next input column of every slot.
        sampler: The sampling parameters of every slot.
        prompt_frames: Each slot's prompt length, which is the position of its first live frame,
            [slots] int64.
        frames: Live frames that each slot has had, [slots] int64.
    """

    lm: PersonaPlexLM
    codec: CodecSlots
    kv: RingCache
    grid: TokenGrid
    sampler: SamplerState
    prompt_frames: Tensor
    frames: Tensor

    def run(self, step: StepInput) -> StepResult:
        """Compute one frame of every session in the batch.

        B sessions, D features of the temporal transformer, V text tokens. No line reads a tensor's
        value on the host, so that the step can be captured and nothing waits for the device.
        """
        batch, pcm, forced_text, counts, host = step
        rows = batch.rows
        frames = self.frames[rows]  # [B], before this one
        next_frames = frames + 1  # [B]
        positions = self.prompt_frames[rows] + frames  # [B]

        # Encode. The frame's semantic code completes the input column, its acoustic codes are
        # delayed by one position and enter the next column.
        user_codes = self.codec.encode(batch, pcm, host.encoded, frames)  # [B, 1920] -> [B, 8]
        column = self.grid.input_column(rows, user_codes)  # [B, 8] -> [B, 17]

        # One position through the temporal transformer, over the session's ring of past positions.
        kv = self.kv.at(batch, host.positions, positions)
        x = self.lm.embed(column)[:, None]  # [B, 17] -> [B, 1, D]
        hidden = self.lm(x, positions[:, None], kv)[:, 0]  # [B, 1, D] -> [B, D]

        # Text first: the depth transformer is conditioned on it. The noise of each sample depends
        # on the session's seed and frame only; frame 0 belongs to ``ModelRunner.sample_first``.
        sampler = self.sampler.frame(batch, next_frames, counts)
        text = sampler.text(self.lm.text_logits(hidden))  # [B, D] -> [B, V] -> [B]
        if forced_text is not None:
            text = force_text(text, forced_text)  # [B]
        agent_codes = self.lm.depth(hidden, text, sampler.audio)  # [B, D], [B] -> [B, 8]

        # Undo the delay: this frame's semantic code was an input of this step, and the step has
        # predicted its acoustic codes.
        emitted = self.grid.advance(rows, column, text, agent_codes, user_codes)

        # The decoder has processed one frame more than the encoder: see ``CodecSlots.primed``.
        codes = emitted.agent_codes  # [B, 8]
        audio = self.codec.decode(batch, codes, host.decoded, next_frames)  # [B, 8] -> [B, 1920]

        self.frames[rows] = next_frames
        return StepResult(emitted, text, audio, hidden.isfinite().all(dim=1))

    @classmethod
    def new(
        cls,
        config: ModelConfig,
        lm: PersonaPlexLM,
        mimi: Mimi,
        slots: int,
        device: torch.device,
        *,
        kv_dtype: torch.dtype | None = None,
        masked: bool = False,
    ) -> FrameStep:
        """Allocate the state of ``slots`` slots.

        Args:
            config: The checkpoint's configuration.
            lm: The language model, on ``device``.
            mimi: The codec, on ``device``.
            slots: Number of slots.
            device: Device of all state.
            kv_dtype: Storage type of the language model's keys and values; ``lm.dtype`` if not
                given.
            masked: Whether attention on a CPU uses masks, as a captured step needs.
        """
        return cls(
            lm=lm,
            codec=CodecSlots(mimi, slots, device, masked=masked, dc_blocker=config.dc_blocker),
            kv=RingCache.for_lm(
                lm, slots, device, window=config.lm.window, kv_dtype=kv_dtype, masked=masked
            ),
            grid=TokenGrid(slots, config, device),
            sampler=SamplerState.on(device, slots, config.lm),
            prompt_frames=torch.zeros(slots, dtype=torch.int64, device=device),
            frames=torch.zeros(slots, dtype=torch.int64, device=device),
        )

    @property
    def slots(self) -> int:
        """Number of slots."""
        return len(self.frames)

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot in bytes, with a full window."""
        return (self.kv.nbytes + self.codec.nbytes) // self.slots
