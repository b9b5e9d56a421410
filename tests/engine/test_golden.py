"""The engine computes the tokens and samples of the reference, one frame earlier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipecat_personaplex import Engine, Persona, SamplingParams
from pipecat_personaplex.audio import pcm16_to_float
from pipecat_personaplex.constants import AGENT_CODES, FRAME_SAMPLES, TEXT, USER_CODES
from pipecat_personaplex.engine.batch import Batch
from pipecat_personaplex.engine.codec_slots import CodecSlots, encode_stream
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.engine.kv_cache import RingCache
from pipecat_personaplex.engine.prefill import Prefill
from pipecat_personaplex.engine.prompt import build_prompt, text_prompt_tokens
from pipecat_personaplex.engine.ring_attention import TritonRingAttention
from pipecat_personaplex.kernels.availability import have_triton
from pipecat_personaplex.models.lm import PersonaPlexLM
from tests.golden_data import GOLDEN, VOICE_SAMPLE, GoldenConversation, conversation

Array = npt.NDArray[np.generic]


def agent_tokens(result: Conversation) -> Array:
    """Text and the agent's codes in the reference's layout, [9, T]."""
    return np.stack(
        [np.concatenate(([f.text_token], f.agent_codes)) for f in result.frames], axis=1
    )


def assert_equals_reference(result: Conversation, golden: GoldenConversation) -> None:
    expected = golden.tokens[[TEXT, *range(AGENT_CODES.start, AGENT_CODES.stop)]]
    np.testing.assert_array_equal(agent_tokens(result)[:, :-1], expected[:, 1:])
    user_codes = np.stack([frame.user_codes for frame in result.frames], axis=1)
    np.testing.assert_array_equal(user_codes, golden.user_codes)
    reference_pcm = golden.agent_pcm[FRAME_SAMPLES:]
    np.testing.assert_allclose(result.pcm[: len(reference_pcm)], reference_pcm, atol=1e-3)


@pytest.mark.parametrize("name", ["restaurant", "friend"])
def test_conversation_with_a_preset_voice(engine: Engine, name: str) -> None:
    golden = conversation(name)
    result = engine.converse(golden.persona, golden.user_pcm, SamplingParams.greedy())
    assert_equals_reference(result, golden)


def test_conversation_with_a_recorded_voice(engine: Engine) -> None:
    golden = conversation("restaurant")
    engine.add_voice("owen", VOICE_SAMPLE)
    persona = Persona(voice="owen", text_prompt=golden.persona.text_prompt)
    result = engine.converse(persona, golden.user_pcm, SamplingParams.greedy())
    assert_equals_reference(result, golden)


@pytest.mark.skipif(not have_triton(), reason="Triton is for Linux")
def test_the_attention_kernels_compute_the_reference(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(
        ring: RingCache, batch: Batch, starts: list[int], positions: torch.Tensor, steps: int = 1
    ) -> TritonRingAttention:
        return TritonRingAttention(ring.stored_keys, ring.stored_values, batch, positions, steps)

    monkeypatch.setattr(RingCache, "at", at)  # Triton's interpreter is slow: two frames
    golden, frames = conversation("friend"), 2
    pcm = golden.user_pcm[: frames * FRAME_SAMPLES]
    result = engine.converse(golden.persona, pcm, SamplingParams.greedy())
    expected = golden.tokens[:9, 1 : frames + 1]
    np.testing.assert_array_equal(agent_tokens(result), expected)
    user_codes = np.stack([frame.user_codes for frame in result.frames], axis=1)
    np.testing.assert_array_equal(user_codes, golden.user_codes[:, :frames])
    reference_pcm = golden.agent_pcm[FRAME_SAMPLES : len(pcm) + FRAME_SAMPLES]
    np.testing.assert_allclose(result.pcm, reference_pcm, atol=1e-3)


def test_codec_streams_the_reference_codes_and_audio(loaded_engine: Engine) -> None:
    with np.load(GOLDEN / "mimi_streaming.npz") as data:
        pcm, codes, expected = pcm16_to_float(data["pcm_in"]), data["codes"], data["pcm_out"]
    mimi = loaded_engine.checkpoint.mimi
    ours = encode_stream(mimi, torch.from_numpy(pcm))
    np.testing.assert_array_equal(ours.T.numpy(), codes)

    cpu = torch.device("cpu")
    codec, batch = CodecSlots(mimi, 1, cpu), Batch.of([0], cpu)
    with torch.inference_mode():
        sound = [
            codec.decode(batch, row[None], [index], torch.tensor([index]))[0]
            for index, row in enumerate(torch.from_numpy(codes.T.astype(np.int64)))
        ]
    np.testing.assert_allclose(torch.cat(sound).numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["restaurant", "friend"])
def test_logits_at_the_recorded_frames(loaded_engine: Engine, name: str) -> None:
    golden = conversation(name)
    checkpoint = loaded_engine.checkpoint
    config, lm = checkpoint.config, checkpoint.lm
    voice = loaded_engine._voices.get(golden.persona.voice)
    text_tokens = text_prompt_tokens(golden.persona.text_prompt, checkpoint.tokenizer)
    prefix = None
    prefill = Prefill(lm, build_prompt(voice, text_tokens, config), torch.device("cpu"))
    while prefix is None:
        prefix = prefill.advance(37)

    cache, batch = one_ring(lm), Batch.of([0], torch.device("cpu"))
    cache.write(0, prefix.first, prefix.keys, prefix.values)
    hidden, position = prefix.hidden[None], prefix.length
    tokens = torch.from_numpy(golden.tokens)  # [17, T]
    column = prefix.column.clone()
    recorded = {int(frame): row for row, frame in enumerate(golden.logits_frames)}
    for step in range(int(golden.logits_frames[-1]) + 1):
        # The reference's step runs position P + step - 1; ``hidden`` is the state of that position.
        if step in recorded:
            row = recorded[step]
            text, audio = heads(lm, hidden, tokens[:, step : step + 2])
            np.testing.assert_allclose(text, golden.text_logits[row], atol=1e-3)
            np.testing.assert_allclose(audio, golden.audio_logits[row, :8], atol=1e-3)
        # The reference's step 0 predicts text and semantic code of position P, emitted at step 1.
        column[TEXT] = tokens[TEXT, step + 1]
        column[AGENT_CODES.start] = tokens[AGENT_CODES.start, step + 1]
        column[AGENT_CODES.start + 1 : AGENT_CODES.stop] = tokens[
            AGENT_CODES.start + 1 : AGENT_CODES.stop, step
        ]
        user = torch.from_numpy(golden.user_codes)
        column[USER_CODES.start] = user[0, step]
        if step:
            column[USER_CODES.start + 1 :] = user[1:, step - 1]
        with torch.inference_mode():
            positions = torch.tensor([position])
            kv = cache.at(batch, [position], positions)
            hidden = lm(lm.embed(column)[None, None], positions[:, None], kv)[:, 0]
        position += 1


def one_ring(lm: PersonaPlexLM) -> RingCache:
    return RingCache.for_lm(lm, 1, torch.device("cpu"))


def heads(lm: PersonaPlexLM, hidden: torch.Tensor, tokens: torch.Tensor) -> tuple[Array, Array]:
    """Text logits and the agent's eight audio logits, given the reference's tokens.

    ``tokens`` [17, 2]: text and semantic code of the position are in the second column, its
    acoustic codes, which the grid delays by one position, in the first.
    """
    audio = []

    def given(codebook: int, logits: torch.Tensor) -> torch.Tensor:
        audio.append(logits[0])
        return tokens[AGENT_CODES.start + codebook, 0 if codebook else 1][None]

    with torch.inference_mode():
        text = lm.text_logits(hidden)[0]
        lm.depth(hidden, tokens[TEXT, 1][None], given)
    return text.numpy(), torch.stack(audio).numpy()
