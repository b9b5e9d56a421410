"""The codec's streaming state of every slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.models.attention import KVStore
from pipecat_personaplex.models.mimi.codec import LATENTS_PER_FRAME, Mimi
from pipecat_personaplex.models.mimi.dc_blocker import DcBlocker


class CodecSlots:
    """Mimi's streaming state for a number of slots: convolutions, keys and values.

    Args:
        mimi: The codec.
        slots: Number of slots.
        device: Device of the codec.
        masked: Whether attention on a CPU uses masks over whole rings, as a captured step needs;
            see ``RingCache``.
        dc_blocker: Whether a high-pass removes DC offsets before the encoder.
    """

    def __init__(
        self,
        mimi: Mimi,
        slots: int,
        device: torch.device,
        *,
        masked: bool = False,
        dc_blocker: bool = False,
    ):
        config = mimi.config
        self.mimi = mimi
        self._conv = mimi.new_state(slots)  # [slots, state size] float32
        self._dc_blocker = DcBlocker(slots, device) if dc_blocker else None
        self._encoder_kv, self._decoder_kv = (
            RingCache(
                layers=config.num_layers,
                slots=slots,
                heads=config.num_heads,
                window=config.window,
                head_dim=config.dimension // config.num_heads,
                dtype=torch.float32,  # as the whole codec: codes must match the reference exactly
                device=device,
                masked=masked,
            )
            for _ in range(2)
        )

    @classmethod
    def primed(
        cls,
        mimi: Mimi,
        silence_codes: Sequence[int],
        device: torch.device,
        *,
        dc_blocker: bool = False,
    ) -> CodecSlots:
        """One slot whose decoder has processed one silent frame.

        The reference decodes the prompt's last, silent frame before the conversation starts.
        Decoding it here and dropping its audio makes the following audio equal sample for sample.
        """
        codec = cls(mimi, 1, device, dc_blocker=dc_blocker)
        codes = torch.tensor([silence_codes], device=device)  # [1, 8]
        frames = torch.zeros(1, dtype=torch.int64, device=device)
        with torch.inference_mode():
            codec.decode(Batch.of([0], device), codes, [0], frames)
        return codec

    @property
    def nbytes(self) -> int:
        """Memory of all slots in bytes."""
        rings = self._encoder_kv.nbytes + self._decoder_kv.nbytes
        return self._conv.nbytes + rings

    def encode(
        self, batch: Batch, pcm: Tensor, host_frames: list[int] | None, frames: Tensor
    ) -> Tensor:
        """Encode one frame of every row: float32 [B, 1920] -> int64 [B, 8].

        Args:
            batch: The slots.
            pcm: The callers' audio.
            host_frames: Frames that each row has encoded before, if the host knows them.
            frames: The same on the device, [B] int64.
        """
        if self._dc_blocker is not None:
            pcm = self._dc_blocker(pcm, batch.rows)
        kv = self._open(self._encoder_kv, batch, host_frames, frames)
        return self.mimi.encode(pcm, self._conv, kv, frames, batch.rows)

    def decode(
        self, batch: Batch, codes: Tensor, host_frames: list[int] | None, frames: Tensor
    ) -> Tensor:
        """Decode one frame of every row: int64 [B, 8] -> float32 [B, 1920].

        Args:
            batch: The slots.
            codes: The agents' codes.
            host_frames: Frames that each row has decoded before, if the host knows them.
            frames: The same on the device, [B] int64.
        """
        kv = self._open(self._decoder_kv, batch, host_frames, frames)
        return self.mimi.decode(codes, self._conv, kv, frames, batch.rows)

    @staticmethod
    def _open(
        rings: RingCache, batch: Batch, host_frames: list[int] | None, frames: Tensor
    ) -> KVStore:
        # The codec's transformers run at 25 Hz: two positions a frame.
        positions = LATENTS_PER_FRAME * frames  # [B]
        starts = None
        if host_frames is not None:
            starts = [LATENTS_PER_FRAME * count for count in host_frames]
        return rings.at(batch, starts, positions, LATENTS_PER_FRAME)

    def start(self, slot: int, source: CodecSlots, frames: int = 0) -> None:
        """Set a slot to the state of slot 0 of ``source``.

        Args:
            slot: The slot.
            source: A state of one slot, from ``primed``.
            frames: Frames that it has encoded. It has decoded one frame more.
        """
        self._conv[slot] = source._conv[0]
        if self._dc_blocker is not None and source._dc_blocker is not None:
            self._dc_blocker.means[slot] = source._dc_blocker.means[0]
        for target, past, count in (
            (self._encoder_kv, source._encoder_kv, frames),
            (self._decoder_kv, source._decoder_kv, frames + 1),
        ):
            target.clear(slot)
            # [layers, heads, 2 * count, head_dim], or the whole ring if it has wrapped around.
            used = slice(LATENTS_PER_FRAME * count)
            target.keys[:, slot, :, used] = past.keys[:, 0, :, used]
            target.values[:, slot, :, used] = past.values[:, 0, :, used]

    def fill_with_zeros(self, slot: int) -> None:
        """Fill a slot's rings with zeros, as if its session were long; for measurements."""
        config = self.mimi.config
        head_dim = config.dimension // config.num_heads
        zeros = self._conv.new_zeros(()).expand(
            config.num_layers, config.num_heads, config.window, head_dim
        )
        for ring in (self._encoder_kv, self._decoder_kv):
            ring.write(slot, 0, zeros, zeros)


class CodecWarmUp:
    """Brings a codec into the state that it has in the middle of a call.

    It encodes the caller's newest frames and decodes the agent's, from a fresh state; a few at a
    time, because running sessions wait meanwhile.

    Args:
        mimi: The codec.
        silence_codes: Codes of a silent frame, from which the decoder starts.
        pcm: The caller's audio, float32 [W, 1920], on the codec's device.
        codes: The agent's codes of the same frames, [W, 8] int64, on the same device.
        dc_blocker: Whether a high-pass removes DC offsets before the encoder.

    Attributes:
        codec: The state, one slot.
        frames: Frames processed so far.
    """

    def __init__(
        self,
        mimi: Mimi,
        silence_codes: Sequence[int],
        pcm: Tensor,
        codes: Tensor,
        *,
        dc_blocker: bool = False,
    ):
        self.codec = CodecSlots.primed(mimi, silence_codes, pcm.device, dc_blocker=dc_blocker)
        self.frames = 0
        self._pcm, self._codes = pcm, codes

    @torch.inference_mode()
    def advance(self, frames: int) -> bool:
        """Process up to ``frames`` more frames; returns whether all are processed."""
        device = self._pcm.device
        batch = Batch.of([0], device)
        for index in range(self.frames, min(self.frames + frames, len(self._pcm))):
            encoded = torch.tensor([index], device=device)
            self.codec.encode(batch, self._pcm[index, None], [index], encoded)
            # The decoder has processed one frame more than the encoder: see ``primed``.
            self.codec.decode(batch, self._codes[index, None], [index + 1], encoded + 1)
            self.frames = index + 1
        return self.frames == len(self._pcm)


def encode_stream(mimi: Mimi, pcm: Tensor) -> Tensor:
    """Encode a whole recording frame by frame from a fresh state.

    Args:
        mimi: The codec.
        pcm: float32 mono 24 kHz, a multiple of 1,920 samples.

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
