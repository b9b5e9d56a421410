"""Trains only the codec's decoder, on the codes of the agent's two voices.

In a call, only the agent's voice is decoded. Encoder and codebooks do not change, so clips can be
encoded and the language model trained at the same time. Each sentence is encoded once, from its
beginning, as in a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.clips import encode_all
from training.nano.codec import load_codec
from training.nano.codec_data import add_at
from training.nano.codec_loss import IntelligibilityLoss, SpectralLoss
from training.nano.codec_quality import CodecCheck
from training.nano.espeak import speaker
from training.nano.material import sentence
from training.nano.parallel_codec import decode_latents
from training.nano.progress import Clock, load_state, report, save_state
from training.nano.voices import AGENT_VOICES

_PEAK_RATE = 8e-4
_WAVE_WEIGHT = 2.0
_INTELLIGIBILITY_WEIGHT = 10.0
_LEAD_FRAMES = 12
# Frames of the silence before a sentence that are part of the decoder's input.
_DECODED_LEAD = 5
_LOG_EVERY = 100


@dataclass(frozen=True)
class DecoderRun:
    """Time budget and batch sizes."""

    minutes: float
    batch: int = 4
    frames: int = 36
    sentences: int = 1200
    check_every: int = 500
    check_sentences: int = 6
    save_every: int = 250
    seed: int = 0


@dataclass(frozen=True)
class AgentSpeech:
    """Sentences of both voices: codes [N, frames, 8] int16 and audio [N, frames * 1920]."""

    codes: Tensor
    pcm: Tensor

    @classmethod
    def synthesise(cls, mimi: Mimi, run: DecoderRun, device: torch.device) -> AgentSpeech:
        """Synthesise and encode sentences, each cut or padded with silence to the same length."""
        random = np.random.default_rng([run.seed, 5])
        frames = _LEAD_FRAMES - _DECODED_LEAD + run.frames
        recordings = []
        for manner in AGENT_VOICES.values():
            for _ in range(run.sentences):
                pcm = np.zeros(frames * FRAME_SAMPLES, np.float32)
                utterance = speaker().say(sentence(random), manner)
                add_at(utterance.pcm, pcm, _LEAD_FRAMES * FRAME_SAMPLES)
                recordings.append(pcm)
        start = _LEAD_FRAMES - _DECODED_LEAD
        codes = torch.stack(encode_all(mimi, recordings, device))[:, start:].clone()
        audio = [torch.from_numpy(pcm[start * FRAME_SAMPLES :]) for pcm in recordings]
        return cls(codes, torch.stack(audio))


def train_decoder(folder: Path, run: DecoderRun, device: torch.device) -> None:
    """Train the decoder or resume a run; appends metrics to ``decoder.jsonl``."""
    torch.manual_seed(run.seed)
    # Silence produces denormal numbers, which are slow on a CPU.
    torch.set_flush_denormal(True)
    mimi = load_codec(folder / "codec.pt", device)
    speech = AgentSpeech.synthesise(mimi, run, device)
    trained = _decoder_parameters(mimi)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK_RATE, betas=(0.8, 0.99), weight_decay=1e-3)
    spectral, clear = SpectralLoss().to(device), IntelligibilityLoss().to(device)
    clock, step, check = Clock(run.minutes * 60), 0, CodecCheck(run.check_sentences)
    if state := load_state(folder / "decoder.pt"):
        mimi.load_state_dict(state["decoder"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        step, clock.spent = state["step"], state["spent"]
    random = np.random.default_rng([run.seed, step])
    while not clock.done:
        rate = _PEAK_RATE * clock.rate_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.from_numpy(random.integers(len(speech.codes), size=run.batch))
        pcm = speech.pcm[rows].to(device)
        output = decode_latents(mimi, _latents(mimi, speech.codes[rows].long().to(device)))
        losses = {
            "spectral": spectral(output, pcm),
            "wave": _WAVE_WEIGHT * F.l1_loss(output, pcm),
            "intelligibility": _INTELLIGIBILITY_WEIGHT * clear(output, pcm),
        }
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        clock.tick()
        step += 1
        if step % run.save_every == 0 or clock.done:
            save_state(
                folder / "decoder.pt",
                {
                    "decoder": {name: p.detach() for name, p in trained.items()},
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "spent": clock.spent,
                },
            )
        if step % _LOG_EVERY == 0 or clock.done:
            row = {"step": step, "seconds": clock.spent, "lr": rate}
            row |= {name: value.item() for name, value in losses.items()}
            if step % run.check_every == 0 or clock.done:
                row |= check(mimi, device, quantized=True)
            report(folder / "decoder.jsonl", row)


def _decoder_parameters(mimi: Mimi) -> dict[str, nn.Parameter]:
    return {
        name: parameter
        for name, parameter in mimi.named_parameters()
        if name.startswith(("upsample", "decoder")) or name.endswith("output_proj")
    }


def _latents(mimi: Mimi, codes: Tensor) -> Tensor:
    """Codes [B, frames, 8] -> the decoder's input, [B, frames, dim]."""
    latents: Tensor = mimi.quantizer.decode(codes.flatten(0, 1))
    return latents.view(*codes.shape[:2], -1)
