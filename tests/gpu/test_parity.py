"""The device computes the codes and tokens of a CPU in float32, and close logits in bfloat16."""

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

_POSITIONS = 150  # three times the golden checkpoint's window


def test_the_codec_encodes_to_the_references_codes() -> None:
    """Each code is an argmin, so TF32 anywhere in the encoder would change some."""
    with np.load(GOLDEN / "mimi_streaming.npz") as data:
        pcm, codes = data["pcm_in"].astype(np.float32) / 32_768, data["codes"]
    encoded = encode_stream(
        checkpoint(DEVICE, torch.float32).mimi, torch.from_numpy(pcm).to(DEVICE)
    )
    np.testing.assert_array_equal(encoded.T.cpu().numpy(), codes)


def test_a_runner_turns_tf32_off() -> None:
    from tests.gpu.machine import new_runner

    torch.set_float32_matmul_precision("high")
    try:
        new_runner(torch.float32, 1, graphs=False)
        if DEVICE.type == "cuda":
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["restaurant", "friend"])
def test_a_conversation_in_float32_equals_the_reference(name: str) -> None:
    for module in ("av", "pyloudnorm", "soundfile", "soxr"):
        pytest.importorskip(module)
    from pipecat_personaplex import Engine, EngineConfig, SamplingParams
    from tests.engine.test_golden import assert_equals_reference
    from tests.golden_data import conversation

    golden = conversation(name)
    config = EngineConfig(device=str(DEVICE), dtype="float32", max_sessions=2)
    with Engine.load(CHECKPOINT, config) as engine:
        result = engine.converse(golden.persona, golden.user_pcm, SamplingParams.greedy())
    assert_equals_reference(result, golden)


@dataclass(frozen=True)
class Logits:
    """Logits at each position: text [T, text_card], audio [T, 8, card], on the host."""

    text: Tensor
    audio: Tensor


@torch.inference_mode()
def teacher_forced(lm: PersonaPlexLM, device: torch.device, tokens: Tensor) -> Logits:
    """The model's logits at each position of given tokens [T, 17]."""
    ring, batch = RingCache.for_lm(lm, 1, device), Batch.of([0], device)
    text, audio = [], []
    given = tokens.to(device)
    for position in range(len(tokens) - 1):
        positions = torch.tensor([position], device=device)
        kv = ring.at(batch, [position], positions)
        hidden = lm(lm.embed(given[position])[None, None], positions[:, None], kv)[:, 0]
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
    return Logits(torch.stack(text), torch.stack(audio))


def given_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 320, (_POSITIONS, STREAMS), generator=generator)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Root-mean-square error over the standard deviation of a CPU's float32 logits. In bfloat16 a
    # CPU's audio logits differ by 0.024 on average and by 0.086 at most.
    [(torch.float32, 1e-4), (torch.bfloat16, 0.05)],
)
def test_logits_match_a_cpu_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    tokens = given_tokens()
    expected = teacher_forced(checkpoint(CPU, torch.float32).lm, CPU, tokens)
    got = teacher_forced(checkpoint(DEVICE, dtype).lm, DEVICE, tokens)
    for ours, theirs in ((got.text, expected.text), (got.audio, expected.audio)):
        error = (ours - theirs).square().mean(-1).sqrt() / theirs.std(-1)
        assert error.mean() < tolerance
        assert error.max() < 5 * tolerance
        # If the best logit leads the second by more than both errors, the best token is the same.
        best, second = theirs.topk(2, dim=-1).values.unbind(-1)
        clear = best - second > 8 * tolerance * theirs.std(-1)
        assert clear.float().mean() > 0.1
        same = ours.argmax(-1) == theirs.argmax(-1)
        assert same[clear].all()
