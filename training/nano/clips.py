"""All utterances of agents and callers, encoded once, so that dialogues need no codec.

An agent's sentence starts on a frame boundary after silence, so its codes do not depend on its
position in a dialogue. A caller's clip includes background noise before and after the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.audio_files import normalize_loudness
from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.models.mimi.codec import Mimi
from training.nano import script
from training.nano.agent_speech import Recorded, load_agent, script_line, synthesise, word_texts
from training.nano.caller_turns import load_turns, turns_files
from training.nano.codec import load_codec
from training.nano.codec_data import add_at
from training.nano.decoder import Sentence, load_agent_codec, silence_codes
from training.nano.espeak import Pcm, Utterance
from training.nano.material import sentence
from training.nano.microphone import Microphone, block_dc, heard
from training.nano.noise import HELD_OUT_NOISES, TRAINING_NOISES, Noise
from training.nano.parallel_codec import encode_latents
from training.nano.pool import (
    CALLERS_EACH,
    AgentClip,
    Caller,
    Pool,
    UserClip,
    callers_file,
    save_callers,
)
from training.nano.precision import fast_autocast
from training.nano.recordings import Recording
from training.nano.turns import SPEEDS, change_speed, word_frames
from training.nano.voices import AGENT_VOICES

VOICE_SAMPLE_FRAMES = 22
_VOICE_SAMPLES = 6
_USER_LEAD_SECONDS = 0.4
_USER_TAIL_SECONDS = 0.8
_BACKGROUND_SECONDS = 6.0
_BATCH = 8
_ROUNDING = 1e-6  # an onset on a frame boundary is in the frame that begins there
_T = TypeVar("_T")


@torch.no_grad()
def encode_all(
    mimi: Mimi, recordings: list[Pcm], device: torch.device, fast: bool = False
) -> list[Tensor]:
    """Codes of each recording, [F, 8] int16; the last frame is padded with silence.

    ``fast`` encodes in bfloat16 where that is faster: a few codes are other ones than the engine's.
    """
    codes: list[Tensor] = [torch.empty(0)] * len(recordings)
    order = sorted(range(len(recordings)), key=lambda index: len(recordings[index]))
    for some in _batched(order, _BATCH):
        frames = -(-len(recordings[some[-1]]) // FRAME_SAMPLES)
        pcm = torch.zeros(len(some), frames * FRAME_SAMPLES)
        for row, index in enumerate(some):
            pcm[row, : len(recordings[index])] = torch.from_numpy(recordings[index])
        with fast_autocast(device) if fast else nullcontext():
            latents = encode_latents(mimi, pcm.to(device))
        found = mimi.quantizer.encode(latents.float().flatten(0, 1)).view(len(some), frames, -1)
        for row, index in enumerate(some):
            length = -(-len(recordings[index]) // FRAME_SAMPLES)
            codes[index] = found[row, :length].to(torch.int16).cpu().clone()
    return codes


def _batched(items: list[_T], size: int) -> Iterable[list[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def steady_codes(mimi: Mimi, pcm: Pcm, device: torch.device) -> list[int]:
    """The most frequent code of each codebook in the second half of a recording."""
    codes = encode_all(mimi, [pcm], device)[0][len(pcm) // FRAME_SAMPLES // 2 :]
    return [int(value) for value in codes.mode(dim=0).values]


def voice_sample(name: str, seed: int) -> Pcm:
    """A short recording of an agent's voice, normalised to the loudness of voice prompts."""
    random = np.random.default_rng([seed, 77])
    pcm = np.zeros(VOICE_SAMPLE_FRAMES * FRAME_SAMPLES, np.float32)
    spoken = np.concatenate([synthesise(name, sentence(random)).pcm for _ in range(2)])
    add_at(spoken, pcm, 0)
    return normalize_loudness(pcm)


def voice_prompts(finished: Mimi, device: torch.device) -> dict[str, list[Tensor]]:
    """Codes of several voice prompts of each of the agent's voices.

    Args:
        finished: The codec of the checkpoint, which encodes voice prompts as it does there.
        device: Its device.
    """
    return {
        name: encode_all(
            finished, [voice_sample(name, seed) for seed in range(_VOICE_SAMPLES)], device
        )
        for name in AGENT_VOICES
    }


def script_clips(mimi: Mimi, recorded: Recorded, device: torch.device) -> dict[str, AgentClip]:
    """Every line of the script in one voice.

    Args:
        mimi: The codec with the agent's own encoder.
        recorded: What the voice has said.
        device: Device of the codec.
    """
    lines = script.all_lines()
    clips = _agent_clips(mimi, [script_line(text, recorded) for text in lines], device)
    return share_beginnings(
        {clip.text: replace(clip, copied=lines[clip.text].copied) for clip in clips}
    )


def word_clips(mimi: Mimi, recorded: Recorded, device: torch.device) -> dict[str, AgentClip]:
    """Every word of the vocabulary by itself, in one voice."""
    texts = word_texts()
    clips = _agent_clips(mimi, [recorded[text] for text in texts.values()], device)
    return dict(zip(texts, clips, strict=True))


def _agent_clips(mimi: Mimi, spoken: list[Utterance], device: torch.device) -> list[AgentClip]:
    sentences = [Sentence.of(utterance.pcm) for utterance in spoken]
    # bfloat16 is allowed: the engine never encodes the agent, so no other codes must match.
    pcm = [sentence.pcm.numpy() for sentence in sentences]
    codes = encode_all(mimi, pcm, device, fast=True)
    return [
        AgentClip(
            utterance.text,
            own[slice(*sentence.spoken)].clone(),
            [int(onset / FRAME_SECONDS + _ROUNDING) for _, onset in utterance.words],
        )
        for utterance, sentence, own in zip(spoken, sentences, codes, strict=True)
    ]


def share_beginnings(clips: dict[str, AgentClip]) -> dict[str, AgentClip]:
    """Give lines the same codes up to the first word that differs, if it is a value's.

    Their audio is the same there, but bfloat16 rounds differently in another batch. A code that is
    another one would tell the value before its first word: the model would predict it from that
    code instead of from its prompt.
    """
    shared: dict[tuple[str, ...], AgentClip] = {}
    result = {}
    for text, clip in clips.items():
        words = text.split()
        for copied in clip.copied:
            first = shared.setdefault(tuple(words[:copied]), clip)
            begin = clip.onsets[copied]
            if first.onsets[copied] == begin:
                codes = torch.cat((first.codes[:begin], clip.codes[begin:]))
                clip = replace(clip, codes=codes)
        result[text] = clip
    return result


@dataclass(frozen=True)
class Background:
    """A caller's background noise and level.

    Attributes:
        noise: The kind of noise; None for a clean signal.
        snr: Signal-to-noise ratio in dB.
        gain: Factor on speech and noise.
    """

    noise: Noise | None
    snr: float
    gain: float

    @classmethod
    def sample(cls, random: np.random.Generator, held_out: bool = False) -> Background:
        """Sample a background: none for one caller in four, else noise at 15 to 40 dB SNR."""
        kinds = HELD_OUT_NOISES if held_out else TRAINING_NOISES
        clean = random.random() < 0.25
        return cls(
            noise=None if clean else kinds[int(random.integers(len(kinds)))],
            snr=float(random.uniform(15, 40)),
            gain=float(10 ** (random.uniform(-10, 2) / 20)),
        )

    def over(self, pcm: Pcm, speech_rms: float, random: np.random.Generator) -> Pcm:
        """Add the background to a caller's audio; returns what the microphone records."""
        if self.noise is not None:
            level = speech_rms * 10 ** (-self.snr / 20)
            pcm = pcm + level * self.noise(random, len(pcm))
        return (pcm * self.gain).clip(-1, 1).astype(np.float32)


def encode_caller(
    mimi: Mimi, recordings: list[Recording], random: np.random.Generator, device: torch.device
) -> Caller:
    """Encode one caller's turns, and the background without words, through one microphone."""
    microphone = Microphone.sample(random)
    recorded, spans = [], []
    for recording in recordings:
        turn = recording.turn
        lead = _USER_LEAD_SECONDS + random.uniform(0, FRAME_SECONDS)
        end = lead + len(turn.pcm) / SAMPLE_RATE
        # Whole frames: an FFT of a length with a large prime factor takes many times as long.
        frames = int((end + _USER_TAIL_SECONDS) / FRAME_SECONDS) + 1
        recorded.append(heard(microphone, turn.pcm, lead, frames * FRAME_SAMPLES, random))
        story_end = (
            None if turn.story_end is None else -int(-(lead + turn.story_end) // FRAME_SECONDS)
        )
        start = int(lead / FRAME_SECONDS)
        spans.append((start, -int(-end // FRAME_SECONDS), word_frames(turn, lead), story_end))
    quiet = np.zeros(int(_BACKGROUND_SECONDS * SAMPLE_RATE), np.float32)
    recorded.append(block_dc(microphone.record(quiet, turn.pcm, random)))
    # bfloat16 is allowed: of 100 codes, four are other ones than the engine's.
    *codes, silence = encode_all(mimi, recorded, device, fast=True)
    caller = Caller(silence)
    for recording, (start, end, word_ends, story_end), clip in zip(
        recordings, spans, codes, strict=True
    ):
        turn_clip = UserClip(recording.intent, clip, start, end, word_ends, story_end)
        caller.clips.setdefault(recording.intent, []).append(turn_clip)
    return caller


def new_pool(folder: Path, finished: Mimi, device: torch.device) -> Pool:
    """Create a pool with the agents' clips and without callers.

    Args:
        folder: Folder of the training states.
        finished: The codec of the checkpoint, which encodes voice prompts as it does there.
        device: Its device.

    Raises:
        StateMissing: ``agent`` or ``decoder`` has not run.
    """
    mimi = load_codec(folder / "codec.pt", device)
    recorded = {name: load_agent(folder, name) for name in AGENT_VOICES}
    codec = load_agent_codec(folder, device)
    seconds = 8 * SAMPLE_RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(seconds) / SAMPLE_RATE)
    return Pool(
        silence=silence_codes(mimi, device).tolist(),
        sine=steady_codes(mimi, tone.astype(np.float32), device),
        voices=voice_prompts(finished, device),
        agent={name: script_clips(codec, own, device) for name, own in recorded.items()},
        words={name: word_clips(codec, own, device) for name, own in recorded.items()},
    )


def add_callers(
    folder: Path,
    mimi: Mimi,
    device: torch.device,
    *,
    part: int = 0,
    parts: int = 1,
    seed: int = 0,
    microphones: int = 1,
) -> Iterator[Path]:
    """Encode the callers that ``speak`` has made and that have no clips; yields each new file.

    Args:
        folder: Folder of the training states.
        mimi: The trained codec.
        device: The codec's device.
        part: Number of this process, from 0.
        parts: Processes that share the work.
        seed: Seed of the microphones, with the caller's number.
        microphones: Random microphones through which each caller speaks all turns. The language
            model takes each for another caller: from the second on, the turns have another speed,
            and so another voice.

    Raises:
        StateMissing: ``speak`` has made no callers.
    """
    for source in turns_files(folder):
        number = int(source.stem)
        path = callers_file(folder, number)
        if number % parts != part or path.exists():
            continue
        made = []
        for index, rows in enumerate(load_turns(source), number * CALLERS_EACH):
            turns = list(map(Recording.of, rows))
            for microphone in range(1, microphones + 1):
                random = np.random.default_rng([seed, index, microphone])
                spoken = turns
                if microphone > 1:
                    speed = float(random.uniform(*SPEEDS))
                    spoken = [Recording(t.intent, change_speed(t.turn, speed)) for t in turns]
                made.append(encode_caller(mimi, spoken, random, device))
        save_callers(path, made)
        yield path
