"""The parallel forward passes of training equal the engine's, frame by frame."""

from __future__ import annotations

import torch

from pipecat_personaplex.constants import (
    CODEBOOKS,
    FRAME_SAMPLES,
    STREAMS,
    USER_CODES,
    ZERO_TOKEN,
)
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.codec_slots import CodecSlots, encode_stream
from pipecat_personaplex.engine.prefill import PromptKVCache
from tests.training.models import CARD, CONFIG, random_codec
from training.nano.caller_embedding import CallerEmbedding, centroid_features
from training.nano.codec import new_codec
from training.nano.parallel_codec import decode_latents, encode_latents
from training.nano.parallel_lm import depth_logits, hidden_states, new_lm

FRAMES = 17  # more than the codec's window holds


def test_codec_pass_equals_stream() -> None:
    torch.manual_seed(0)
    mimi = random_codec().requires_grad_(False)
    mimi.reset_constants("cpu")
    pcm = torch.randn(FRAMES * FRAME_SAMPLES) * 0.3
    codes = mimi.quantizer.encode(encode_latents(mimi, pcm[None])[0])
    assert torch.equal(codes, encode_stream(mimi, pcm))
    assert len(codes.unique()) > 4, "the test needs codes that change"

    whole = decode_latents(mimi, mimi.quantizer.decode(codes)[None])[0]
    device = torch.device("cpu")
    slots, batch = CodecSlots(mimi, 1, device), Batch.of([0], device)
    with torch.inference_mode():
        parts = [
            slots.decode(batch, codes[i : i + 1], [i], torch.tensor([i])) for i in range(FRAMES)
        ]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1)[0], atol=1e-4, rtol=1e-3)


def test_bfloat16_changes_the_encoder_little() -> None:
    """With AMX, PyTorch 2.13 computes one of its convolutions with wrong weights."""
    torch.manual_seed(0)
    mimi = new_codec().requires_grad_(False)
    pcm = torch.randn(2, 8 * FRAME_SAMPLES) * 0.3
    exact = encode_latents(mimi, pcm)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encode_latents(mimi, pcm).float()
    assert (rounded - exact).square().mean() < 0.01 * exact.var()


def test_lm_pass_equals_engine_steps() -> None:
    torch.manual_seed(0)
    lm = new_lm(CONFIG.lm).requires_grad_(False)
    columns = torch.randint(0, CONFIG.lm.card, (1, FRAMES, 17))
    columns[0, 3, 12] = -1
    positions = torch.arange(FRAMES)[None]
    hidden = hidden_states(lm, columns, positions)

    config = CONFIG.lm
    cache = PromptKVCache(
        layers=config.num_layers,
        heads=config.num_heads,
        length=FRAMES,
        window=config.window,
        head_dim=config.dim // config.num_heads,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    stepped = []
    with torch.inference_mode():
        for position in range(FRAMES):
            here = slice(position, position + 1)
            stepped.append(lm(lm.embed(columns[:, here]), positions[:, here], cache.begin(1)))
    torch.testing.assert_close(hidden, torch.cat(stepped, dim=1), atol=1e-5, rtol=1e-4)

    text = torch.randint(0, CONFIG.lm.text_card, (FRAMES,))
    codes = torch.randint(0, CONFIG.lm.card, (FRAMES, CODEBOOKS))
    logits = depth_logits(lm.depth, hidden[0], text, codes)
    seen: list[torch.Tensor] = []

    def forced(step: int, given: torch.Tensor) -> torch.Tensor:
        seen.append(given)
        return codes[:, step]

    with torch.inference_mode():
        lm.depth(hidden[0], text, forced)
    torch.testing.assert_close(logits, torch.stack(seen), atol=1e-5, rtol=1e-4)


def embedding() -> CallerEmbedding:
    torch.manual_seed(1)
    return CallerEmbedding(centroid_features(random_codec()), CONFIG.lm.dim)


def random_columns(calls: int = 1) -> torch.Tensor:
    columns = torch.randint(0, CARD, (calls, FRAMES, STREAMS))
    columns[:, 3, 12] = ZERO_TOKEN
    columns[:, 0, USER_CODES] = CARD  # before the stream begins
    return columns


def test_callers_embedding_equals_its_tables() -> None:
    callers, lm = embedding().eval(), new_lm(CONFIG.lm)
    columns, positions = random_columns(), torch.arange(FRAMES)[None]
    before = hidden_states(lm, columns, positions)
    computed = hidden_states(lm, columns, positions, callers)
    assert not torch.allclose(computed, before, atol=1e-2)
    callers.write(lm)
    torch.testing.assert_close(
        hidden_states(lm, columns, positions), computed, atol=1e-5, rtol=1e-4
    )


def test_callers_vary_in_training_and_agents_do_not() -> None:
    callers = embedding()
    codes = random_columns()[..., USER_CODES].repeat(2, 1, 1)
    one, other = callers(codes).detach()
    assert not torch.allclose(one, other, atol=1e-2)
    one, other = callers.eval()(codes).detach()
    assert torch.equal(one, other)
    assert not callers(torch.full((1, FRAMES, CODEBOOKS), ZERO_TOKEN)).any()


def test_callers_embedding_starts_near_the_tables_of_a_model() -> None:
    callers, lm = embedding(), new_lm(CONFIG.lm)
    fitted = CallerEmbedding(callers.features, CONFIG.lm.dim)
    torch.nn.init.zeros_(callers.out)  # tables that a linear map can express
    callers.write(lm)
    fitted.fit(lm)
    torch.testing.assert_close(fitted.linear, callers.linear, atol=1e-4, rtol=1e-3)
