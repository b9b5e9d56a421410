"""Intelligibility (STOI) of speech after the codec."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from pystoi import stoi

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.espeak import Pcm, speaker
from training.nano.material import sentence
from training.nano.parallel_codec import decode_latents, encode_latents
from training.nano.voices import CLEAR_VOICES

_HELD_OUT_SEED = 990_001


def mean_stoi(speech: dict[str, list[Pcm]], codec: Callable[[Pcm], Pcm]) -> dict[str, float]:
    """Mean STOI of each voice after a codec, with the originals as reference; all under ``stoi``.

    Args:
        speech: Recordings by voice.
        codec: Returns a recording as it sounds after the codec, of the same length.
    """
    scores = {
        name: float(np.mean([stoi(pcm, codec(pcm), SAMPLE_RATE) for pcm in recordings]))
        for name, recordings in speech.items()
    }
    return {f"stoi_{name}": score for name, score in scores.items()} | {
        "stoi": float(np.mean(list(scores.values())))
    }


def held_out_speech(sentences: int = 6) -> dict[str, list[Pcm]]:
    """Sentences that the codec's first phases do not hear, in espeak-ng's clear voices."""
    random = np.random.default_rng(_HELD_OUT_SEED)
    texts = [sentence(random) for _ in range(sentences)]
    return {
        name: [speaker().say(text, manner).pcm for text in texts]
        for name, manner in CLEAR_VOICES.items()
    }


@torch.no_grad()
def through_codec(mimi: Mimi, pcm: Pcm, device: torch.device, quantized: bool = True) -> Pcm:
    """Encode and decode a recording; ``quantized=False`` applies only the projections."""
    samples = torch.from_numpy(pcm).to(device)
    padded = F.pad(samples, (0, -len(samples) % FRAME_SAMPLES))[None]
    latents = encode_latents(mimi, padded)
    if quantized:
        codes = mimi.quantizer.encode(latents[0])
        values = mimi.quantizer.decode(codes)[None]
    else:
        acoustic = mimi.quantizer.acoustic
        values = F.linear(F.linear(latents, acoustic.input_proj), acoustic.output_proj)
    output: Pcm = decode_latents(mimi, values)[0, : len(pcm)].cpu().numpy()
    return output
