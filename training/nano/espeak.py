"""Speech synthesis by espeak-ng's library, with the onsets of words and phonemes.

The library runs in this process, about a hundred times faster than real time. Its events contain
the onset of each word and phoneme; training needs no other alignment.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import soxr
from numpy.typing import NDArray

from pipecat_personaplex.constants import SAMPLE_RATE

Pcm = NDArray[np.float32]

_SYNCHRONOUS = 2
_WITH_PHONEMES = 1
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_IPA = 2
_WORD, _PHONEME = 1, 7
# Audible samples exceed this level; espeak's pauses are exact zeros.
_AUDIBLE = 1e-3


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Manner:
    """How espeak speaks: voice, rate and pitch.

    Attributes:
        voice: An espeak-ng voice and variant, such as ``en-us+f2``.
        rate: Words a minute.
        pitch: Mean pitch, 0 to 100.
        range: Pitch range, 0 (monotone) to 100.
    """

    voice: str
    rate: int = 165
    pitch: int = 50
    range: int = 50

    def varied(self, random: np.random.Generator) -> Manner:
        """The same voice with a small random change of rate and pitch."""
        rate = self.rate + int(random.integers(-10, 11))
        return Manner(self.voice, rate, self.pitch + int(random.integers(-4, 5)), self.range)

    def begin_turn(self, random: np.random.Generator) -> Callable[[str], Utterance]:
        """How this voice says the words of one turn."""
        return partial(speaker().say, manner=self.varied(random))


@dataclass(frozen=True)
class Utterance:
    """Speech without the silence before and after it.

    Attributes:
        text: The words.
        pcm: float32 mono, 24 kHz.
        words: Each word of ``text.split()`` and its onset in seconds.
        phonemes: Each phoneme's mnemonic and its onset in seconds.
    """

    text: str
    pcm: Pcm
    words: tuple[tuple[str, float], ...]
    phonemes: tuple[tuple[str, float], ...]

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.pcm) / SAMPLE_RATE


def _word_onsets(
    text: str, marks: dict[int, float], seconds: float
) -> tuple[tuple[str, float], ...]:
    """The onset of each word of ``text.split()``.

    espeak merges some words ("I am") and marks only the first. The onsets of the others are
    interpolated between the marks around them, by letter position.
    """
    known = sorted({0: 0.0, **marks, len(text): seconds}.items())
    positions, times = zip(*known, strict=True)
    return tuple(
        (match[0], float(np.interp(match.start(), positions, times)))
        for match in re.finditer(r"\S+", text)
    )


class Speaker:
    """The espeak-ng library. It allows one instance in a process: use ``speaker()``.

    Raises:
        RuntimeError: The library is not installed or does not start.
    """

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise RuntimeError("espeak-ng is not installed: apt-get install libespeak-ng1")
        self._library = ctypes.CDLL(name)
        self._rate = self._library.espeak_Initialize(_SYNCHRONOUS, 200, None, _WITH_PHONEMES)
        if self._rate <= 0:
            raise RuntimeError("espeak-ng does not start")
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._samples: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, int, float, str]] = []
        self._callback = _CALLBACK(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, wav: ctypes._Pointer[ctypes.c_short], count: int, events: object) -> int:
        if wav and count > 0:
            self._samples.append(np.ctypeslib.as_array(wav, shape=(count,)).copy())
        index = 0
        while (event := events[index]).type != 0:  # type: ignore[index]
            if event.type in (_WORD, _PHONEME):
                name = event.id.string.decode(errors="replace") if event.type == _PHONEME else ""
                self._events.append((event.type, event.text_position, event.audio_position, name))
            index += 1
        return 0

    def ipa(self, text: str, voice: str) -> str:
        """The pronunciation of ``text`` in the IPA, with the punctuation between its parts."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        return " ".join(
            self._sounds(part.rstrip(",.?!")) + part[-1:].strip("abcdefghijklmnopqrstuvwxyz")
            for part in re.split(r"(?<=[,.?!])\s+", text)
        )

    def _sounds(self, text: str) -> str:
        data = ctypes.create_string_buffer(text.encode())
        position = ctypes.c_void_p(ctypes.addressof(data))
        parts = []
        while position.value:  # espeak sets it to NULL at the end
            sounds = self._library.espeak_TextToPhonemes(ctypes.byref(position), _UTF8, _IPA)
            parts.append(sounds.decode())
        return " ".join(parts).strip()

    def say(self, text: str, manner: Manner) -> Utterance:
        """Synthesise ``text``; espeak's noise differs from call to call, and so do the samples.

        Raises:
            ValueError: espeak-ng has no such voice.
        """
        library = self._library
        if library.espeak_SetVoiceByName(manner.voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {manner.voice!r}")
        for parameter, value in (
            (_RATE, manner.rate),
            (_PITCH, manner.pitch),
            (_RANGE, manner.range),
        ):
            library.espeak_SetParameter(parameter, value, 0)
        self._samples, self._events = [], []
        data = text.encode()
        library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        raw = np.concatenate(self._samples).astype(np.float32) / 32768
        pcm = soxr.resample(raw, self._rate, SAMPLE_RATE).astype(np.float32)
        loud = np.flatnonzero(np.abs(pcm) > _AUDIBLE)
        start, end = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(pcm))
        shift = start / SAMPLE_RATE
        phonemes: list[tuple[str, float]] = []
        marks: dict[int, float] = {}
        for kind, position, milliseconds, name in self._events:
            onset = max(0.0, milliseconds / 1000 - shift)
            if kind == _WORD:
                marks.setdefault(position - 1, onset)
            elif name:
                phonemes.append((name, onset))
        words = _word_onsets(text, marks, (end - start) / SAMPLE_RATE)
        return Utterance(text, pcm[start:end], words, tuple(phonemes))


@cache
def speaker() -> Speaker:
    """The one speaker of this process."""
    return Speaker()
