"""One batched 80 ms step: encode, temporal transformer, depth transformer, decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipecat_personaplex.architecture import ModelConfig
from pipecat_personaplex.config import AGENT_CODES, FRAME_SAMPLES, TEXT, SamplingParams
from pipecat_personaplex.engine.kv_cache import Batch, RingCache
from pipecat_personaplex.engine.prompting import Prefix
from pipecat_personaplex.engine.sampling import SamplerState
from pipecat_personaplex.engine.tokens import Emitted, TokenGrid
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import LATENTS_PER_FRAME, CodecState, Mimi


@dataclass(frozen=True)
class StepOutput:
    """One frame of every session in the batch, on the host, rows in slot order.

    Attributes:
        text: Text tokens, [B] int64.
        agent_codes: [B, 8] int64.
        user_codes: [B, 8] int64.
        pcm: The agent's audio, float32 [B, 1920].
        finite: Whether the model's state was, [B] bool; where not, the tokens mean nothing.
    """

    text: Tensor
    agent_codes: Tensor
    user_codes: Tensor
    pcm: Tensor
    finite: Tensor


class CodecSlots:
    """The codec's streaming state for a number of slots: convolutions, keys and values."""

    def __init__(self, mimi: Mimi, slots: int, device: torch.device):
        config = mimi.config
        self._mimi = mimi
        self._conv: CodecState = mimi.new_state(slots)
        self._encoder_kv, self._decoder_kv = (
            RingCache(
                layers=config.num_layers,
                slots=slots,
                heads=config.num_heads,
                window=config.window,
                head_dim=config.dimension // config.num_heads,
                dtype=torch.float32,
                device=device,
            )
            for _ in range(2)
        )

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        rings = self._encoder_kv.nbytes + self._decoder_kv.nbytes
        return self._conv.storage.nbytes + rings

    def encode(self, batch: Batch, pcm: Tensor, starts: list[int], frames: Tensor) -> Tensor:
        """[B, 1920] -> [B, 8]; ``starts`` and ``frames`` count the frames encoded before."""
        places = [LATENTS_PER_FRAME * start for start in starts]
        kv = self._encoder_kv.at(batch, places, LATENTS_PER_FRAME * frames, LATENTS_PER_FRAME)
        return self._mimi.encode(pcm, self._conv, kv, frames, batch.rows)

    def decode(self, batch: Batch, codes: Tensor, starts: list[int], frames: Tensor) -> Tensor:
        """[B, 8] -> [B, 1920]; ``starts`` and ``frames`` count the frames decoded before."""
        places = [LATENTS_PER_FRAME * start for start in starts]
        kv = self._decoder_kv.at(batch, places, LATENTS_PER_FRAME * frames, LATENTS_PER_FRAME)
        return self._mimi.decode(codes, self._conv, kv, frames, batch.rows)

    def start(self, slot: int, primed: CodecSlots) -> None:
        """Start a slot like slot 0 of ``primed``, which has decoded a frame and encoded none."""
        self._conv.storage[slot] = primed._conv.storage[0]
        self._encoder_kv.clear(slot)
        self._decoder_kv.clear(slot)
        past = slice(LATENTS_PER_FRAME)
        mine, theirs = self._decoder_kv, primed._decoder_kv
        mine.keys[:, slot, :, past] = theirs.keys[:, 0, :, past]
        mine.values[:, slot, :, past] = theirs.values[:, 0, :, past]

    def age(self, slot: int) -> None:
        """Fill a slot's rings with zeros, as if its call were long, for measurements."""
        config = self._mimi.config
        head_dim = config.dimension // config.num_heads
        zeros = self._conv.storage.new_zeros(()).expand(
            config.num_layers, config.num_heads, config.window, head_dim
        )
        for ring in (self._encoder_kv, self._decoder_kv):
            ring.write(slot, 0, zeros, zeros)


def encode_stream(mimi: Mimi, pcm: Tensor) -> Tensor:
    """Encode a whole recording frame by frame from a fresh state.

    Args:
        mimi: The codec.
        pcm: float32 mono 24 kHz, a whole number of frames of 1,920 samples.

    Returns:
        Codes, [frames, 8] int64, on ``pcm``'s device.
    """
    codec = CodecSlots(mimi, 1, pcm.device)
    batch = Batch.of([0], pcm.device)
    with torch.inference_mode():
        return torch.cat(
            [
                codec.encode(batch, frame[None], [index], torch.tensor([index], device=pcm.device))
                for index, frame in enumerate(pcm.view(-1, FRAME_SAMPLES))
            ]
        )


class ModelRunner:
    """The model and the state of every slot. Used by one thread.

    Args:
        config: The checkpoint's.
        lm: The language model, on its device.
        mimi: The codec, on the same device.
        slots: Sessions at once.
        device: Where everything lives.
    """

    def __init__(
        self, config: ModelConfig, lm: PersonaPlexLM, mimi: Mimi, slots: int, device: torch.device
    ):
        self.config = config
        self.lm = lm
        self.mimi = mimi
        self.device = device
        self._kv = RingCache.for_lm(lm, slots, device)
        self._codec = CodecSlots(mimi, slots, device)
        self._grid = TokenGrid(slots, config, device)
        self._sampler = SamplerState(slots, config.lm, device)
        # Where each slot's conversation starts and how many frames it has had: on the device
        # for the step, on the host for what shapes depend on.
        self._prompt = torch.zeros(slots, dtype=torch.int64, device=device)
        self._frames = torch.zeros(slots, dtype=torch.int64, device=device)
        self._host_prompt = [0] * slots
        self._host_frames = [0] * slots
        self._primed = self._primed_codec()

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot with a full window."""
        slots = len(self._host_frames)
        return (self._kv.nbytes + self._codec.nbytes) // slots

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
            batch: The slots that have a frame.
            pcm: Their audio in slot order, float32 [B, 1920], 24 kHz.
            forced_text: Text tokens that stand in for drawn ones, [B] int64; -1 draws.
        """
        rows = batch.rows
        frames = self._frames[rows]
        host_frames = [self._host_frames[slot] for slot in batch.slots]
        user_codes = self._codec.encode(batch, pcm.to(self.device), host_frames, frames)

        column = self._grid.input_column(rows, user_codes)
        positions = self._prompt[rows] + frames
        starts = [self._host_prompt[slot] + self._host_frames[slot] for slot in batch.slots]
        hidden = self.lm(
            self.lm.embed(column)[:, None],
            positions[:, None],
            self._kv.at(batch, starts, positions),
        )[:, 0]

        draw = self._sampler.frame(batch, frames + 1)
        text = draw.text(self.lm.text_logits(hidden))
        if forced_text is not None:
            forced_text = forced_text.to(self.device)
            text = torch.where(forced_text < 0, text, forced_text)
        agent_codes = self.lm.depth(hidden, text, draw.audio)
        said = self._grid.advance(rows, column, text, agent_codes, user_codes)

        # The decoder is one frame ahead: it has said the silent one.
        decoded = [start + 1 for start in host_frames]
        audio = self._codec.decode(batch, said.agent_codes, decoded, frames + 1)

        self._frames[rows] = frames + 1
        for slot in batch.slots:
            self._host_frames[slot] += 1
        return _to_host(said, audio, hidden.isfinite().all(dim=1))


def _to_host(said: Emitted, audio: Tensor, finite: Tensor) -> StepOutput:
    """One copy for the tokens, one for the audio."""
    columns = (said.text[:, None], said.agent_codes, said.user_codes, finite[:, None])
    tokens = torch.cat(columns, dim=1).cpu()
    return StepOutput(
        text=tokens[:, 0],
        agent_codes=tokens[:, 1:9],
        user_codes=tokens[:, 9:17],
        pcm=audio.cpu(),
        finite=tokens[:, 17].bool(),
    )
