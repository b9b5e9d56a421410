"""Intelligibility (STOI) of the agent's speech after the codec, on held-out sentences."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from pystoi import stoi

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.espeak import Pcm, speaker
from training.nano.material import sentence
from training.nano.parallel_codec import decode_latents, encode_latents
from training.nano.voices import AGENT_VOICES

_HELD_OUT_SEED = 990_001


class CodecCheck:
    """Measures the codec on a fixed set of sentences in both voices.

    Args:
        sentences: Number of sentences for each voice.
    """

    def __init__(self, sentences: int = 6):
        random = np.random.default_rng(_HELD_OUT_SEED)
        texts = [sentence(random) for _ in range(sentences)]
        self.speech: dict[str, list[Pcm]] = {
            name: [speaker().say(text, manner).pcm for text in texts]
            for name, manner in AGENT_VOICES.items()
        }

    def __call__(self, mimi: Mimi, device: torch.device, quantized: bool) -> dict[str, float]:
        """Mean STOI of each voice, and of all voices under ``stoi``."""
        scores = {
            name: float(np.mean([self.stoi(mimi, pcm, device, quantized) for pcm in speech]))
            for name, speech in self.speech.items()
        }
        return {f"stoi_{name}": score for name, score in scores.items()} | {
            "stoi": float(np.mean(list(scores.values())))
        }

    def stoi(self, mimi: Mimi, pcm: Pcm, device: torch.device, quantized: bool) -> float:
        """STOI of one sentence after the codec, with the original as reference."""
        return float(stoi(pcm, through_codec(mimi, pcm, device, quantized), SAMPLE_RATE))


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
