"""The bytes that the parts of a step read."""

from __future__ import annotations

import torch

from pipecat_personaplex.bench.bandwidth import module_bytes
from pipecat_personaplex.bench.models import load_model
from pipecat_personaplex.bench.parts import _DECODE, _DEPTH, _ENCODE, _TEMPORAL, bytes_read
from pipecat_personaplex.config import EngineConfig
from tests.golden_data import CHECKPOINT


def test_parts_read_every_weight_but_embeddings_once() -> None:
    model = load_model(str(CHECKPOINT), EngineConfig(device="cpu", dtype="float32"))
    lm, mimi = model.lm, model.mimi
    embeddings = sum(
        module_bytes(module) for module in lm.modules() if isinstance(module, torch.nn.Embedding)
    )
    constants = lm.frequencies.nbytes + lm.audio_offsets.nbytes
    read = bytes_read(lm, _TEMPORAL) + bytes_read(lm, _DEPTH)
    assert read == module_bytes(lm) - embeddings - constants
    assert bytes_read(mimi, _ENCODE) + bytes_read(mimi, _DECODE) == (
        module_bytes(mimi) - mimi.frequencies.nbytes
    )
