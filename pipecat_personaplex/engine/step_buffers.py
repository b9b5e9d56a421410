"""What goes into a step and what comes out of it, in buffers that stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES, ZERO_TOKEN
from pipecat_personaplex.engine.token_grid import Emitted

_PCM = slice(FRAME_SAMPLES)
_SLOT, _FORCED_TEXT, _INPUTS = range(FRAME_SAMPLES, FRAME_SAMPLES + 3)
# Text, both speakers' codes, whether the state is finite; then the audio.
_TOKENS = 2 + 2 * CODEBOOKS
_OUTPUTS = _TOKENS + FRAME_SAMPLES


@dataclass(frozen=True)
class StepResult:
    """What a step computed, on the device: tokens, audio [B, 1920], finite [B] bool."""

    said: Emitted
    audio: Tensor
    finite: Tensor

    def tokens(self) -> Tensor:
        """All but the audio, [B, 18] int64: text, agent's codes, user's codes, finite."""
        said = self.said
        columns = (said.text[:, None], said.agent_codes, said.user_codes, self.finite[:, None])
        return torch.cat(columns, dim=1)


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

    def tokens(self) -> Tensor:
        """Text, agent's and caller's codes, [B, 17] int64."""
        return torch.cat((self.text[:, None], self.agent_codes, self.user_codes), dim=1)

    @staticmethod
    def of(tokens: Tensor, pcm: Tensor) -> StepOutput:
        """From ``StepResult.tokens`` and audio, both on the host."""
        return StepOutput(
            text=tokens[:, 0],
            agent_codes=tokens[:, 1 : 1 + CODEBOOKS],
            user_codes=tokens[:, 1 + CODEBOOKS : _TOKENS - 1],
            pcm=pcm,
            finite=tokens[:, _TOKENS - 1].bool(),
        )


class StepBuffers:
    """Inputs and outputs of a step at fixed addresses; each side crosses in one copy.

    A row is int32; audio stands in it bit for bit.

    Args:
        rows: The largest batch.
        scratch: The slot that rows without a session step into.
        device: Where steps run.
    """

    def __init__(self, rows: int, scratch: int, device: torch.device):
        self._scratch = scratch
        self._device = device
        pinned = device.type == "cuda"

        def on_host(width: int) -> Tensor:
            return torch.zeros(rows, width, dtype=torch.int32, pin_memory=pinned)

        self._host_in, self._host_out = on_host(_INPUTS), on_host(_OUTPUTS)
        self._in = torch.zeros(rows, _INPUTS, dtype=torch.int32, device=device)
        self._out = torch.zeros(rows, _OUTPUTS, dtype=torch.int32, device=device)

    def put(
        self, size: int, slots: Sequence[int], pcm: Tensor, forced_text: Tensor | None = None
    ) -> None:
        """Bring a batch to the device, filled up to ``size`` rows; waits for nothing.

        Args:
            size: Rows that the step will run.
            slots: Whose frames, at most ``size``.
            pcm: Their audio, float32 [len(slots), 1920], on the host.
            forced_text: int64 [len(slots)], -1 to draw; None draws for all.
        """
        rows, given = self._host_in[:size], len(slots)
        rows[:given, _PCM].view(torch.float32).copy_(pcm)
        rows[given:, _PCM] = 0
        rows[:given, _SLOT] = torch.tensor(slots, dtype=torch.int32)
        rows[given:, _SLOT] = self._scratch
        rows[:, _FORCED_TEXT] = ZERO_TOKEN
        if forced_text is not None:
            rows[:given, _FORCED_TEXT] = forced_text.int()
        self._in[:size].copy_(rows, non_blocking=True)

    def inputs(self, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """On the device: slots [size] int64, audio [size, 1920], forced text [size] int64."""
        rows = self._in[:size]
        return (
            rows[:, _SLOT].long(),
            rows[:, _PCM].view(torch.float32),
            rows[:, _FORCED_TEXT].long(),
        )

    def answer(self, answer: StepResult) -> None:
        """Keep what a step computed, on the device."""
        rows = self._out[: answer.audio.shape[0]]
        rows[:, :_TOKENS] = answer.tokens()
        rows[:, _TOKENS:] = answer.audio.view(torch.int32)

    def take(self, given: int) -> StepOutput:
        """Wait for the step, and bring the first ``given`` rows to the host."""
        rows = self._host_out[:given]
        rows.copy_(self._out[:given], non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        # Copies: the next step's output comes to the same place.
        return StepOutput.of(
            rows[:, :_TOKENS].long(), rows[:, _TOKENS:].view(torch.float32).clone()
        )
