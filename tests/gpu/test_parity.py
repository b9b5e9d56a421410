"""The device computes what a CPU does in float32: codes and tokens exactly, bfloat16 nearly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from pipecat_personaplex.constants import AGENT_CODES, STREAMS, TEXT
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.models.lm import PersonaPlexLM
from tests.gpu.machine import CHECKPOINT, CPU, DEVICE, GOLDEN, checkpoint, needs_device

pytestmark = needs_device

_POSITIONS = 150  # three times around the golden checkpoint's ring


def test_the_codec_hears_the_references_codes() -> None:
    """An argmin each: TF32 anywhere in the encoder would show."""
    with np.load(GOLDEN / "mimi_streaming.npz") as data:
        pcm, codes = data["pcm_in"].astype(np.float32) / 32_768, data["codes"]
    heard = encode_stream(checkpoint(DEVICE, torch.float32).mimi, torch.from_numpy(pcm).to(DEVICE))
    np.testing.assert_array_equal(heard.T.cpu().numpy(), codes)


def test_tf32_is_off_once_a_runner_is_made() -> None:
    from tests.gpu.machine import new_runner

    torch.set_float32_matmul_precision("high")
    try:
        new_runner(torch.float32, 1, graphs=False)
        if DEVICE.type == "cuda":
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["restaurant", "friend"])
def test_a_conversation_in_float32_is_the_references(name: str) -> None:
    for module in ("av", "pyloudnorm", "soundfile", "soxr"):
        pytest.importorskip(module)
    from pipecat_personaplex import Engine, EngineConfig, SamplingParams
    from tests.engine.test_golden import assert_equals_reference
    from tests.golden_data import conversation

    golden = conversation(name)
    config = EngineConfig(device=str(DEVICE), dtype="float32", max_sessions=2)
    with Engine.load(CHECKPOINT, config) as engine:
        said = engine.converse(golden.persona, golden.user_pcm, SamplingParams.greedy())
    assert_equals_reference(said, golden)


@dataclass(frozen=True)
class Thought:
    """Logits at each position: text [T, text_card], audio [T, 8, card], on the host."""

    text: Tensor
    audio: Tensor


@torch.inference_mode()
def think(lm: PersonaPlexLM, device: torch.device, tokens: Tensor) -> Thought:
    """What a model thinks of each next token, given the same ones throughout."""
    ring, batch = RingCache.for_lm(lm, 1, device), Batch.of([0], device)
    text, audio = [], []
    given = tokens.to(device)
    for position in range(len(tokens) - 1):
        place = torch.tensor([position], device=device)
        kv = ring.at(batch, [position], place)
        hidden = lm(lm.embed(given[position])[None, None], place[:, None], kv)[:, 0]
        text.append(lm.text_logits(hidden)[0].float().cpu())
        books: list[Tensor] = []
        following = given[position + 1]

        def choose(
            codebook: int,
            logits: Tensor,
            books: list[Tensor] = books,
            following: Tensor = following,
        ) -> Tensor:
            books.append(logits[0].float().cpu())
            return following[AGENT_CODES.start + codebook][None]

        lm.depth(hidden, following[TEXT][None], choose)
        audio.append(torch.stack(books))
    return Thought(torch.stack(text), torch.stack(audio))


def given_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 320, (_POSITIONS, STREAMS), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Of a CPU's logits in float32: root-mean-square error over their spread. In bfloat16 on a
    # CPU, audio is off by 0.024 on average, and by 0.086 at most.
    [(torch.float32, 1e-4), (torch.bfloat16, 0.05)],
)
def test_logits_are_a_cpus_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    tokens = given_tokens()
    expected = think(checkpoint(CPU, torch.float32).lm, CPU, tokens)
    got = think(checkpoint(DEVICE, dtype).lm, DEVICE, tokens)
    for ours, theirs in ((got.text, expected.text), (got.audio, expected.audio)):
        error = (ours - theirs).square().mean(-1).sqrt() / theirs.std(-1)
        assert error.mean() < tolerance
        assert error.max() < 5 * tolerance
        # Where the best is ahead of the second by more than both may be off, it stays the best.
        best, second = theirs.topk(2, dim=-1).values.unbind(-1)
        clear = best - second > 8 * tolerance * theirs.std(-1)
        assert clear.float().mean() > 0.1
        same = ours.argmax(-1) == theirs.argmax(-1)
        assert same[clear].all()
