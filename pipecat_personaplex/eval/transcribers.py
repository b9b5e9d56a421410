"""Transcribers: from the agent's audio to words with times."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pipecat_personaplex.audio import Pcm, float_to_pcm16
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.eval.plugins import find_plugin, require_package
from pipecat_personaplex.words import Word

GROUP = "personaplex.transcribers"
"""Entry points: functions from the text after the colon of ``--asr`` to a ``Transcriber``."""
MONOLOGUE = "monologue"
"""Not a transcriber: the words of the model's own text stream."""
_RATE = 16_000
_INSTALL = "pip install 'pipecat-personaplex[eval]'"
_ONNX_INSTALL = "pip install 'onnx-asr[cpu,hub]'"
_PARAKEET = "nemo-parakeet-tdt-0.6b-v2"
_NO_WORD = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")
_VARIANT = re.compile(r"\(\d+\)$")
_LAST_TOKEN_SECONDS = 0.08  # one frame of Parakeet


class Transcriber(Protocol):
    """Finds words in a recording."""

    def __call__(self, pcm: Pcm, rate: int) -> list[Word]:
        """Return the words in order of time.

        Args:
            pcm: float32 [n], mono.
            rate: Its sample rate.
        """
        ...


def find_transcriber(text: str) -> Transcriber:
    """Make the transcriber that ``--asr`` names.

    Raises:
        ConfigError: The name is unknown, or a package or a model is missing.
    """
    return find_plugin("--asr", GROUP, text, _BUILT_IN)


class Whisper:
    """faster-whisper, with word times.

    Args:
        model: A folder with a model, or a name such as ``small.en``, which is downloaded.

    Raises:
        ConfigError: The package is missing, or the model cannot be loaded.
    """

    def __init__(self, model: str):
        package = require_package("--asr whisper", "faster_whisper", _INSTALL)
        if not model:
            raise ConfigError("--asr whisper needs a model: whisper:small.en, or whisper:FOLDER")
        try:
            self._model: Any = package.WhisperModel(model, compute_type="auto")
        except Exception as error:  # its types depend on the hub and on CTranslate2
            raise ConfigError(f"--asr whisper:{model} cannot be loaded: {error}") from None

    def __call__(self, pcm: Pcm, rate: int) -> list[Word]:
        """Transcribe; silence is left out first, because Whisper invents words in it."""
        if not len(pcm):
            return []
        segments, _ = self._model.transcribe(
            _resampled(pcm, rate),
            word_timestamps=True,
            vad_filter=True,
            condition_on_previous_text=False,
            beam_size=1,
            temperature=0.0,
        )
        return [
            Word(word.word.strip(), float(word.start), float(word.end))
            for segment in segments
            for word in segment.words or ()
            if word.word.strip()
        ]


class PocketSphinx:
    """PocketSphinx with its bundled US English model: weak, small and without downloads.

    Raises:
        ConfigError: The package is missing.
    """

    def __init__(self, argument: str):
        if argument:
            raise ConfigError(f"--asr pocketsphinx takes no argument, not {argument!r}")
        package = require_package("--asr pocketsphinx", "pocketsphinx", _INSTALL)
        self._decoder: Any = package.Decoder(samprate=_RATE, loglevel="FATAL")

    def __call__(self, pcm: Pcm, rate: int) -> list[Word]:
        """Transcribe."""
        if not len(pcm):
            return []
        decoder = self._decoder
        decoder.start_utt()
        decoder.process_raw(float_to_pcm16(_resampled(pcm, rate)).tobytes(), full_utt=True)
        decoder.end_utt()
        return [
            Word(_VARIANT.sub("", part.word), part.start_frame / 100, (part.end_frame + 1) / 100)
            for part in decoder.seg() or ()
            if not _NO_WORD.fullmatch(part.word)
        ]


class OnnxModel:
    """A model that onnx-asr runs, such as Parakeet, whose words the published scripts use.

    Args:
        model: Name of the model in onnx-asr, with or without ``nemo-``.

    Raises:
        ConfigError: The package is missing, or the model cannot be loaded.
    """

    def __init__(self, model: str):
        package = require_package("--asr onnx", "onnx_asr", _ONNX_INSTALL)
        name = model or _PARAKEET
        if name.startswith("parakeet"):
            name = f"nemo-{name}"
        try:
            self._model: Any = package.load_model(name).with_timestamps()
        except Exception as error:  # its types depend on the hub and on onnxruntime
            raise ConfigError(f"--asr onnx:{name} cannot be loaded: {error}") from None

    def __call__(self, pcm: Pcm, rate: int) -> list[Word]:
        """Transcribe. A token with a leading space starts a word."""
        if not len(pcm):
            return []
        result = self._model.recognize(_resampled(pcm, rate), sample_rate=_RATE)
        tokens, times = list(result.tokens or ()), list(result.timestamps or ())
        if not tokens:
            return []
        ends = [*times[1:], times[-1] + _LAST_TOKEN_SECONDS]
        words: list[Word] = []
        for token, start, end in zip(tokens, times, ends, strict=True):
            starts_word = token.startswith((" ", "▁")) or not words
            text = token.lstrip(" ▁")
            # A token lasts at most half a second: the next one may follow a pause.
            end = min(end, start + 0.5)
            if starts_word and text:
                words.append(Word(text, float(start), float(end)))
            elif text:
                words[-1] = Word(words[-1].word + text, words[-1].start, float(end))
        return words


def read_chunks(content: Any) -> list[Word]:
    """Words of an ``output.json``: ``{"chunks": [{"text": ..., "timestamp": [start, end]}]}``.

    Raises:
        ConfigError: The content has another form.
    """
    try:
        return [
            Word(
                str(each["text"]).strip(), float(each["timestamp"][0]), float(each["timestamp"][1])
            )
            for each in content["chunks"]
        ]
    except (TypeError, KeyError, IndexError, ValueError):
        raise ConfigError(
            'a transcript must have the form {"chunks": [{"text": "hello", "timestamp": [0, 1]}]}'
        ) from None


def chunks_of(words: list[Word]) -> dict[str, Any]:
    """The content of an ``output.json``."""
    return {
        "text": " ".join(word.word for word in words),
        "chunks": [{"text": word.word, "timestamp": [word.start, word.end]} for word in words],
    }


def _resampled(pcm: Pcm, rate: int) -> Pcm:
    if rate == _RATE or not len(pcm):
        return pcm
    import soxr

    samples: Pcm = soxr.resample(pcm, rate, _RATE).astype(np.float32)
    return samples


_BUILT_IN: dict[str, Callable[[str], Transcriber]] = {
    "whisper": Whisper,
    "pocketsphinx": PocketSphinx,
    "onnx": OnnxModel,
}
