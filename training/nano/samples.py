"""Recordings and spectrograms of calls with a finished checkpoint."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files, no windows

import matplotlib.pyplot as plt
import numpy as np
import soundfile

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.engine.engine import Engine
from training.nano.agent_speech import reference
from training.nano.calls import TestCall, question_calls
from training.nano.espeak import Pcm


def write_samples(model: Path, folder: Path, seeds: tuple[int, ...] = (7, 8)) -> None:
    """Run one call for each seed; write audio in stereo, a transcript and a spectrogram."""
    folder.mkdir(parents=True, exist_ok=True)
    with Engine.load(model, EngineConfig(device="cpu", max_sessions=1)) as engine:
        for seed in seeds:
            call = question_calls(1, seed)[0]
            persona = Persona(call.voice, call.character.prompt)
            talk = engine.converse(persona, call.pcm, SamplingParams(seed=seed))
            both = np.stack([call.pcm[: len(talk.pcm)], talk.pcm], axis=1)
            soundfile.write(folder / f"call_{seed}.ogg", both, SAMPLE_RATE)
            text = "".join(frame.text for frame in talk.frames).strip()
            (folder / f"call_{seed}.txt").write_text(
                f"voice: {call.voice}\nprompt: {call.character.prompt}\n"
                f"asked: {', '.join(turn.intent for turn in call.turns)}\nsaid: {text}\n"
            )
            _picture(call, talk.pcm, folder / f"call_{seed}.png")


def _picture(call: TestCall, spoken: Pcm, path: Path) -> None:
    """Plot the spectrogram of the first answer, below the synthesiser's of the same sentence."""
    turn = call.turns[0]
    reference_pcm = reference(call.voice, call.character.answer(turn.intent)).pcm
    start = int((turn.end + 0.2) * SAMPLE_RATE)
    parts = {
        "synthesiser": reference_pcm,
        "nano": spoken[start : start + len(reference_pcm) + SAMPLE_RATE // 2],
    }
    figure, axes = plt.subplots(len(parts), 1, figsize=(9, 6), sharey=True, layout="constrained")
    for axis, (title, pcm) in zip(axes, parts.items(), strict=True):
        # Faint noise, because digital silence has no finite level in dB.
        shown = pcm + 1e-6 * np.random.default_rng(0).standard_normal(len(pcm))
        axis.specgram(shown, NFFT=512, Fs=SAMPLE_RATE, noverlap=384, vmin=-140, vmax=-30)
        axis.set(title=title, ylim=(0, 8000), ylabel="Hz")
    axes[-1].set_xlabel("s")
    figure.savefig(path, dpi=60)
    plt.close(figure)
