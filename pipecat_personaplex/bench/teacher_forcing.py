"""A model stepped through given tokens: its logits at each frame, whatever it would sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipecat_personaplex.bench.models import LoadedModel
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.token_grid import TokenGrid
from pipecat_personaplex.models.delay_pattern import initial_column


@dataclass(frozen=True)
class Logits:
    """The logits of one frame: for the text token and for each of the 8 codebooks."""

    text: Tensor  # float32 [text_card]
    audio: Tensor  # float32 [8, card]

    def streams(self) -> list[Tensor]:
        """Return the logits of the 9 streams, text first."""
        return [self.text, *self.audio]


@dataclass(frozen=True)
class ReferenceRun:
    """A conversation of the float32 model: its tokens and its logits at each frame."""

    user_codes: Tensor  # [frames, 8]
    text: Tensor  # [frames]
    codes: Tensor  # [frames, 8]
    logits: list[Logits]


class TeacherForcedModel:
    """Steps one session of a model through tokens that the caller chooses.

    Keys and values are the model's own throughout, so errors in them accumulate as in a call.

    Args:
        model: The model, on its device.

    Example::

        forced = TeacherForcedModel(load_model("random-1b", EngineConfig(device="cpu")))
        logits, text, codes = forced.step(
            torch.zeros(1, 8, dtype=torch.int64),
            lambda logits: logits.argmax(dim=-1),
            lambda codebook, logits: logits.argmax(dim=-1),
        )
    """

    def __init__(self, model: LoadedModel):
        self._lm, self._device = model.lm, model.device
        self._batch = Batch.of([0], self._device)
        self._ring = RingCache.for_lm(
            model.lm, 1, self._device, window=model.window, kv_dtype=model.kv_dtype
        )
        self._grid = TokenGrid(1, model.config, self._device)
        self._grid.start(0, initial_column(model.config).to(self._device))
        self._position = 0

    @torch.inference_mode()
    def step(
        self,
        user_codes: Tensor,
        choose_text: Callable[[Tensor], Tensor],
        choose_code: Callable[[int, Tensor], Tensor],
    ) -> tuple[Logits, Tensor, Tensor]:
        """Run one frame.

        Args:
            user_codes: Codes of the caller, [1, 8].
            choose_text: Returns the text token [1] for float32 logits [1, text_card].
            choose_code: Returns the code [1] for a codebook and float32 logits [1, card].

        Returns:
            The logits on the CPU, and the chosen text token [1] and codes [1, 8].
        """
        rows = self._batch.rows
        column = self._grid.input_column(rows, user_codes)  # [1, 17]
        position = torch.tensor([self._position], device=self._device)
        kv = self._ring.at(self._batch, [self._position], position)
        hidden = self._lm(self._lm.embed(column)[:, None], position[:, None], kv)[:, 0]  # [1, dim]
        text_logits = self._lm.text_logits(hidden)  # [1, text_card]
        text = choose_text(text_logits)
        audio_logits: list[Tensor] = []

        def choose(codebook: int, logits: Tensor) -> Tensor:
            logits = logits.float()
            audio_logits.append(logits[0])
            return choose_code(codebook, logits)

        codes = self._lm.depth(hidden, text, choose)
        self._grid.advance(rows, column, text, codes, user_codes)
        self._position += 1
        return Logits(text_logits[0].cpu(), torch.stack(audio_logits).cpu()), text, codes
