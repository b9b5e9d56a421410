"""Trains the codec's decoder on the agent's two voices, with an encoder of the agent's own.

In a call, only the agent's voice is decoded, and only callers' voices are encoded. So the codes of
the agent's sentences need not come from the encoder that hears callers: here, another encoder and
the decoder learn together to pass the agent's voices through the codebooks, which do not change.
Once ``clips`` has encoded the agent's sentences, only the decoder learns. The checkpoint contains
the decoder alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano.agent_speech import load_agent
from training.nano.codec import load_codec
from training.nano.codec_data import add_at
from training.nano.codec_loss import IntelligibilityLoss, SpectralLoss
from training.nano.codec_quality import mean_stoi
from training.nano.espeak import Pcm
from training.nano.parallel_codec import decode_latents, encode_latents, quantize
from training.nano.precision import fast_autocast
from training.nano.progress import Clock, StateMissing, load_state, report, save_state
from training.nano.voices import AGENT_VOICES

LEAD_FRAMES = 6
"""Frames of silence that the agent's encoder hears before a sentence."""
TAIL_FRAMES = 1
"""Frames after the last sample of a sentence that have codes of their own."""
_SILENT_FRAMES = 4  # after those
_PEAK_RATE = 8e-4
_WEIGHTS = {"spectral": 1.0, "wave": 2.0, "intelligibility": 10.0, "commitment": 0.5}
# Share of long sentences that are cut at their beginning too.
_CUT_SHARE = 0.7
_LOG_EVERY = 50


@dataclass(frozen=True)
class DecoderRun:
    """Time budget and batch sizes.

    Attributes:
        minutes: Training time without pauses.
        batch: Excerpts in a step.
        frames: Frames of an excerpt.
        check_every: Steps between two measurements of STOI.
        checked: Sentences of each voice that measure the training and are not part of it.
        save_every: Steps between two states.
        seed: Seed of the excerpts.
    """

    minutes: float
    batch: int = 8
    frames: int = 32
    check_every: int = 500
    checked: int = 6
    save_every: int = 200
    seed: int = 0


@dataclass(frozen=True)
class Sentence:
    """A sentence between silences.

    Attributes:
        pcm: [frames * 1920].
        spoken: First frame of the sentence and first one of the silence after it.
    """

    pcm: Tensor
    spoken: tuple[int, int]

    @classmethod
    def of(cls, words: Pcm) -> Sentence:
        """Surround a recording with silence."""
        end = LEAD_FRAMES - (-len(words) // FRAME_SAMPLES) + TAIL_FRAMES
        pcm = np.zeros((end + _SILENT_FRAMES) * FRAME_SAMPLES, np.float32)
        add_at(words, pcm, LEAD_FRAMES * FRAME_SAMPLES)
        return cls(torch.from_numpy(pcm), (LEAD_FRAMES, end))

    def excerpt(self, frames: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Audio [frames * 1920] and, for each frame, whether it is of the sentence."""
        own = len(self.pcm) // FRAME_SAMPLES
        start = 0
        if own > frames and random.random() < _CUT_SHARE:
            start = int(random.integers(0, own - frames + 1))
        pcm, spoken = torch.zeros(frames * FRAME_SAMPLES), torch.zeros(frames, dtype=torch.bool)
        part = self.pcm[start * FRAME_SAMPLES : (start + frames) * FRAME_SAMPLES]
        pcm[: len(part)] = part
        first, last = (max(0, frame - start) for frame in self.spoken)
        spoken[first:last] = True
        return pcm, spoken


class AgentCodec:
    """Passes the agent's voices through the codebooks, with gradients.

    Args:
        mimi: The codec; its encoder becomes the agent's own.
        silence: The codes of silence, which stand in all frames that are not spoken.
        keep_codes: Do not train the encoder.

    Attributes:
        trained: The parameters to train, by name.
    """

    def __init__(self, mimi: Mimi, silence: Tensor, keep_codes: bool):
        self.mimi, self._silence = mimi, silence
        self.trained = {
            name: parameter
            for name, parameter in mimi.named_parameters()
            if _decodes(name) or not (keep_codes or name.endswith("centroids"))
        }
        for parameter in self.trained.values():
            parameter.requires_grad_(True)

    def __call__(self, pcm: Tensor, spoken: Tensor) -> tuple[Tensor, Tensor]:
        """[B, frames * 1920], [B, frames] -> audio [B, frames * 1920] and the commitment loss."""
        mimi, silence = self.mimi, self.mimi.quantizer.decode(self._silence[None])
        with fast_autocast(pcm.device):
            latents = encode_latents(mimi, pcm)
        latents = latents.float()
        values, commitment = torch.zeros_like(latents), latents.new_zeros(())
        for group in (mimi.quantizer.semantic, mimi.quantizer.acoustic):
            found = quantize(group, latents)
            values = values + found.values
            distance = F.linear(latents, group.input_proj) - found.inner.detach()
            commitment = commitment + distance[spoken].square().mean() / group.centroids[0].var()
        values = torch.where(spoken[..., None], values, silence)
        with fast_autocast(pcm.device):
            output = decode_latents(mimi, values)
        return output.float(), commitment

    def halves(self) -> dict[str, dict[str, Tensor]]:
        """The parameters after the codebooks and those before them, as parts of a state."""
        halves: dict[str, dict[str, Tensor]] = {"decoder": {}, "agent_encoder": {}}
        for name, parameter in self.mimi.named_parameters():
            if not name.endswith("centroids"):
                half = "decoder" if _decodes(name) else "agent_encoder"
                halves[half][name] = parameter.detach()
        return halves

    @torch.no_grad()
    def speak(self, words: Pcm) -> Pcm:
        """A recording after the codec."""
        sentence = Sentence.of(words)
        device = self._silence.device
        spoken = torch.zeros(1, len(sentence.pcm) // FRAME_SAMPLES, dtype=torch.bool, device=device)
        spoken[:, slice(*sentence.spoken)] = True
        output: Pcm = self(sentence.pcm[None].to(device), spoken)[0][0].cpu().numpy()
        return output[LEAD_FRAMES * FRAME_SAMPLES :][: len(words)]


def train_decoder(folder: Path, run: DecoderRun, device: torch.device) -> None:
    """Train the decoder or resume a run; appends metrics to ``decoder.jsonl``.

    Raises:
        StateMissing: There is no codec, or ``agent`` has recorded nothing.
    """
    torch.manual_seed(run.seed)
    mimi = load_codec(folder / "codec.pt", device)
    checked, sentences = _recordings(folder, run)
    keep_codes = (folder / "pool.pt").exists()
    codec = AgentCodec(mimi, silence_codes(mimi, device), keep_codes)
    parameters = list(codec.trained.values())
    optimizer = torch.optim.AdamW(parameters, lr=_PEAK_RATE, betas=(0.8, 0.99), weight_decay=1e-3)
    spectral, clear = SpectralLoss().to(device), IntelligibilityLoss().to(device)
    clock, step = Clock(run.minutes * 60), 0
    if (folder / "decoder.pt").exists():
        state = _load(folder)
        mimi.load_state_dict(state["decoder"] | state["agent_encoder"], strict=False)
        if state["keep_codes"] == keep_codes:
            optimizer.load_state_dict(state["optimizer"])
        step, clock.spent = state["step"], state["spent"]
    random = np.random.default_rng([run.seed, step])
    # Names and prices are many and short: sentences are chosen by their length.
    lengths = np.array([np.diff(sentence.spoken)[0] for sentence in sentences], np.float64)
    shares = lengths / lengths.sum()
    sums: dict[str, float] = {}
    counted = 0
    while not clock.done:
        rate = _PEAK_RATE * clock.rate_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = random.choice(len(sentences), run.batch, p=shares)
        excerpts = [sentences[index].excerpt(run.frames, random) for index in chosen]
        pcm, spoken = (torch.stack(part).to(device) for part in zip(*excerpts, strict=True))
        output, commitment = codec(pcm, spoken)
        losses = {
            "spectral": spectral(output, pcm),
            "wave": F.l1_loss(output, pcm),
            "intelligibility": clear(output, pcm),
            "commitment": commitment,
        }
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(
            torch.stack([weight * losses[name] for name, weight in _WEIGHTS.items()]).sum()
        )
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        clock.tick()
        step += 1
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item()
        counted += 1
        if step % run.save_every == 0 or clock.done:
            if (folder / "pool.pt").exists() > keep_codes:
                raise StateMissing(
                    f"`clips` has written {folder / 'pool.pt'} while `decoder` changed the codes: "
                    "delete it, end `decoder` first, and run `clips` again"
                )
            save_state(
                folder / "decoder.pt",
                codec.halves()
                | {
                    "optimizer": optimizer.state_dict(),
                    "keep_codes": keep_codes,
                    "step": step,
                    "spent": clock.spent,
                },
            )
        if step % _LOG_EVERY == 0 or clock.done:
            row = {"step": step, "seconds": clock.spent, "lr": rate}
            row |= {name: round(total / counted, 4) for name, total in sums.items()}
            sums, counted = {}, 0
            if step % run.check_every == 0 or clock.done:
                row |= mean_stoi(checked, codec.speak)
            report(folder / "decoder.jsonl", row)


def _recordings(folder: Path, run: DecoderRun) -> tuple[dict[str, list[Pcm]], list[Sentence]]:
    """Recordings of each voice that measure the training, and the sentences that it hears."""
    checked: dict[str, list[Pcm]] = {}
    sentences: list[Sentence] = []
    for voice in AGENT_VOICES:
        pcm = [utterance.pcm for utterance in load_agent(folder, voice).values()]
        checked[voice] = pcm[len(pcm) - run.checked :]
        sentences += map(Sentence.of, pcm[: len(pcm) - run.checked])
    return checked, sentences


def _decodes(name: str) -> bool:
    """Whether a parameter stands after the codebooks."""
    return name.startswith(("upsample", "decoder")) or name.endswith("output_proj")


def silence_codes(mimi: Mimi, device: torch.device) -> Tensor:
    """The codes of steady silence, [8]."""
    pcm = torch.zeros(1, 60 * FRAME_SAMPLES, device=device)
    with torch.no_grad():
        codes: Tensor = mimi.quantizer.encode(encode_latents(mimi, pcm)[0, 30:])
    return codes.mode(dim=0).values


def _load(folder: Path) -> dict[str, Any]:
    path = folder / "decoder.pt"
    if not (state := load_state(path)):
        raise StateMissing(f"no decoder in {path}: run `decoder` first")
    if "agent_encoder" not in state:
        raise StateMissing(f"{path} has no encoder of the agent: delete it and run `decoder`")
    return state


def load_agent_codec(folder: Path, device: torch.device) -> Mimi:
    """Load the codec with the agent's own encoder: it gives the codes of the agent's sentences.

    Raises:
        StateMissing: ``decoder`` has not run, or only that of an older recipe.
    """
    state = _load(folder)
    mimi = load_codec(folder / "codec.pt", device)
    mimi.load_state_dict(state["decoder"] | state["agent_encoder"], strict=False)
    mimi.reset_constants(device)
    return mimi
