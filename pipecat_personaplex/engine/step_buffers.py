"""Inputs and outputs of a step, and the buffers that carry them between host and device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, ZERO_TOKEN
from pipecat_personaplex.engine.batch import Batch, HostPositions
from pipecat_personaplex.engine.sampling import CandidateCounts
from pipecat_personaplex.engine.token_grid import Emitted

# Columns of an input row: 1,920 samples, slot index, forced text token.
_PCM = slice(FRAME_SAMPLES)
_SLOT, _FORCED_TEXT, _INPUTS = range(FRAME_SAMPLES, FRAME_SAMPLES + 3)
# Columns of an output row: text, agent codes, user codes, next text, finite flag; then 1,920
# samples.
_TOKENS = 3 + 2 * CODEBOOKS
_NEXT_TEXT, _FINITE = _TOKENS - 2, _TOKENS - 1
_OUTPUTS = _TOKENS + FRAME_SAMPLES


class StepInput(NamedTuple):
    """Everything that one step reads, except the slots' own state.

    An eager step and a captured step run the same code; they differ in these values only.

    Attributes:
        batch: The slots. Captured: ``rows`` is an index tensor on the device, ``slots`` is empty.
        pcm: The callers' audio, float32 [B, 1920], on the device.
        forced_text: Which text tokens replace sampled ones, [B] int64: f >= 0 forces token f; -1
            samples; f <= -2 places token -2 - f only where the model itself samples a word, that
            is neither padding nor a control token. None, if all rows sample; always given in a
            captured step.
        counts: Candidates to rank. Eager: as many as the batch requests. Captured: a constant.
        host: Positions that the host knows; unknown in a captured step.
    """

    batch: Batch
    pcm: Tensor
    forced_text: Tensor | None
    counts: CandidateCounts
    host: HostPositions = HostPositions()


@dataclass(frozen=True)
class StepResult:
    """What a step has computed, on the device.

    Attributes:
        emitted: The frame's tokens: text [B], agent and user codes [B, 8].
        next_text: Text tokens of the next frame, [B] int64: sampled or forced by this step.
        audio: The agents' audio, float32 [B, 1920].
        finite: Whether the hidden state is finite, [B] bool.
    """

    emitted: Emitted
    next_text: Tensor
    audio: Tensor
    finite: Tensor

    def tokens(self) -> Tensor:
        """All but the audio, [B, 19] int64: text, agent codes, user codes, next text, finite."""
        frame = self.emitted
        columns = (
            frame.text[:, None],  # [B, 1]
            frame.agent_codes,  # [B, 8]
            frame.user_codes,  # [B, 8]
            self.next_text[:, None],  # [B, 1]
            self.finite[:, None],  # [B, 1]
        )
        return torch.cat(columns, dim=1)


@dataclass(frozen=True)
class StepOutput:
    """One frame of every session in a batch, on the host, rows in slot order.

    Attributes:
        text: Text tokens, [B] int64.
        agent_codes: [B, 8] int64.
        user_codes: [B, 8] int64.
        next_text: Text tokens of the next frame, [B] int64.
        pcm: The agents' audio, float32 [B, 1920].
        finite: Whether the hidden state is finite, [B] bool; if not, the row's tokens are invalid.
    """

    text: Tensor
    agent_codes: Tensor
    user_codes: Tensor
    next_text: Tensor
    pcm: Tensor
    finite: Tensor

    def tokens(self) -> Tensor:
        """Text, agent codes, user codes and next text, [B, 18] int64."""
        columns = (
            self.text[:, None],
            self.agent_codes,
            self.user_codes,
            self.next_text[:, None],
        )
        return torch.cat(columns, dim=1)

    @staticmethod
    def of(tokens: Tensor, pcm: Tensor) -> StepOutput:
        """Split ``StepResult.tokens`` [B, 19]; both tensors are on the host."""
        return StepOutput(
            text=tokens[:, 0],
            agent_codes=tokens[:, 1 : 1 + CODEBOOKS],
            user_codes=tokens[:, 1 + CODEBOOKS : _NEXT_TEXT],
            next_text=tokens[:, _NEXT_TEXT],
            pcm=pcm,
            finite=tokens[:, _FINITE].bool(),
        )


class StepBuffers:
    """A step's inputs and outputs at fixed addresses, as a captured step needs them.

    All inputs cross to the device in one copy, and all outputs back in one. A row is int32; audio
    is stored in it bit for bit.

    Args:
        rows: The largest batch.
        scratch: The slot that padding rows step into.
        device: Device of the step.
    """

    def __init__(self, rows: int, scratch: int, device: torch.device):
        self._scratch = scratch
        self._device = device
        pinned = device.type == "cuda"  # only pinned memory is copied asynchronously

        def on_host(columns: int) -> Tensor:
            return torch.zeros(rows, columns, dtype=torch.int32, pin_memory=pinned)

        self._host_in, self._host_out = on_host(_INPUTS), on_host(_OUTPUTS)
        self._in = torch.zeros(rows, _INPUTS, dtype=torch.int32, device=device)
        self._out = torch.zeros(rows, _OUTPUTS, dtype=torch.int32, device=device)

    def write(
        self, size: int, slots: Sequence[int], pcm: Tensor, forced_text: Tensor | None = None
    ) -> None:
        """Copy a batch to the device, padded to ``size`` rows; does not wait for the copy.

        Args:
            size: Rows that the step will run.
            slots: The sessions' slots, at most ``size``.
            pcm: Their audio, float32 [len(slots), 1920], on the host.
            forced_text: As ``StepInput.forced_text``, int64 [len(slots)]; None samples for all.
        """
        rows, used = self._host_in[:size], len(slots)
        rows[:used, _PCM].view(torch.float32).copy_(pcm)
        rows[used:, _PCM] = 0
        rows[:used, _SLOT] = torch.tensor(slots, dtype=torch.int32)
        rows[used:, _SLOT] = self._scratch
        rows[:, _FORCED_TEXT] = ZERO_TOKEN
        if forced_text is not None:
            rows[:used, _FORCED_TEXT] = forced_text.int()
        self._in[:size].copy_(rows, non_blocking=True)

    def inputs(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """On the device: slots [size] int64, audio [size, 1920], forced text [size] int64."""
        rows = self._in[:size]
        return (
            rows[:, _SLOT].long(),
            rows[:, _PCM].view(torch.float32),
            rows[:, _FORCED_TEXT].long(),
        )

    def store(self, result: StepResult) -> None:
        """Write a step's result to the output rows on the device."""
        rows = self._out[: result.audio.shape[0]]
        rows[:, :_TOKENS] = result.tokens()
        rows[:, _TOKENS:] = result.audio.view(torch.int32)

    def read(self, used: int) -> StepOutput:
        """Wait for the step and copy its first ``used`` rows to the host."""
        rows = self._host_out[:used]
        rows.copy_(self._out[:used], non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        # Copies, because the next step overwrites the host buffer.
        return StepOutput.of(
            rows[:, :_TOKENS].long(), rows[:, _TOKENS:].view(torch.float32).clone()
        )
