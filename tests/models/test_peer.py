"""Parity with the independent implementation ``moshi`` from PyPI, on the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipecat_personaplex.bench.peer import peer_lm_kwargs, peer_mimi_config
from pipecat_personaplex.checkpoint.file_names import MIMI_FILE, MODEL_FILE
from pipecat_personaplex.checkpoint.loader import Checkpoint, load_checkpoint
from pipecat_personaplex.constants import CODEBOOKS, FRAME_SAMPLES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.codec_slots import CodecSlots, encode_stream
from pipecat_personaplex.models.config import LMConfig, ModelConfig
from tests.helpers.checkpoints import SMALL_MIMI, write_checkpoint
from tests.helpers.kyutai import assert_logits_agree

CPU = torch.device("cpu")
CONFIG = ModelConfig(
    lm=LMConfig(
        dim=96,
        num_layers=4,
        num_heads=6,
        context=60,
        text_card=320,
        dep_q=8,
        depformer_dim=64,
        depformer_dim_feedforward=264,
        depformer_num_heads=4,
        depformer_num_layers=3,
    ),
    mimi=SMALL_MIMI,
)
FRAMES = 100  # longer than the windows of both transformers


@dataclass
class Both:
    ours: Checkpoint
    peer_lm: Any
    peer_mimi: Any


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    from moshi.models import loaders
    from moshi.utils.compile import no_compile

    folder: Path = write_checkpoint(tmp_path_factory.mktemp("peer") / "checkpoint", CONFIG)
    peer_mimi_kwargs = peer_mimi_config(CONFIG)
    peer_mimi_kwargs["quantizer"]["n_q"] = 10  # as many as the file stores
    with no_compile():
        yield Both(
            ours=load_checkpoint(folder, device=CPU, dtype=torch.float32),
            peer_lm=loaders.get_moshi_lm(
                folder / MODEL_FILE, peer_lm_kwargs(CONFIG), CPU, torch.float32
            ).eval(),
            peer_mimi=loaders.get_mimi(folder / MIMI_FILE, peer_mimi_kwargs, CPU, CODEBOOKS),
        )


@pytest.fixture(scope="module")
def pcm() -> torch.Tensor:
    time = np.arange(FRAMES * FRAME_SAMPLES) / 24_000
    chirp = 0.3 * np.sin(2 * np.pi * (120 + 400 * time) * time)
    noise = np.random.default_rng(0).normal(0, 0.05, chirp.shape)
    return torch.from_numpy((chirp + noise).astype(np.float32))


def test_codec_codes_and_audio_agree(both: Both, pcm: torch.Tensor) -> None:
    ours = encode_stream(both.ours.mimi, pcm)
    with torch.inference_mode(), both.peer_mimi.streaming(1):
        pcm_frames = pcm.view(FRAMES, 1, 1, FRAME_SAMPLES)
        theirs = torch.cat([both.peer_mimi.encode(frame) for frame in pcm_frames], dim=-1)[0].T
        sound = [both.peer_mimi.decode(codes[None, :, None])[0, 0] for codes in theirs]
    assert theirs.unique().numel() > 50
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)

    codec, batch = CodecSlots(both.ours.mimi, 1, CPU), Batch.of([0], CPU)
    with torch.inference_mode():
        for index, (codes, expected) in enumerate(zip(theirs, sound, strict=True)):
            frames = torch.tensor([index])
            got = codec.decode(batch, codes[None], [index], frames)[0]
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_language_model_logits_agree(both: Both) -> None:
    assert_logits_agree(both.ours, both.peer_lm, FRAMES)
