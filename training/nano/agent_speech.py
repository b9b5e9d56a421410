"""What the agent says, in its two voices, synthesised by Kokoro and kept on disk.

A line of the script is composed of its parts, so that hundreds of names and prices need one
recording each. So does each word of a larger vocabulary, for sentences that the agent is given.
Further sentences teach the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from training.nano import script, wordings
from training.nano.espeak import Pcm, Utterance
from training.nano.given import vocabulary
from training.nano.kokoro import KokoroVoice, kokoro
from training.nano.material import sentence
from training.nano.noise import rms
from training.nano.progress import (
    StateMissing,
    from_int16,
    load_state,
    save_state,
    to_int16,
)
from training.nano.voices import AGENT_VOICES

_TEXTS_EACH = 20
_LOUDNESS = 0.08  # RMS
# Seconds of silence between two sentences at least. Each part starts on a frame boundary: its codes
# are then alike in all lines.
_STOP = 0.1
# A word of the vocabulary is cut from a phrase: alone it would be slow, and the tone would fall. Of
# 12 sentences of cut words, coded, Whisper tiny.en misunderstood 25 %, of words alone 56 %.
_AFTER_WORD = "people."
_WORD_SPEED = 0.9
_CUT_SEARCH = (-2400, 1900)  # samples around the estimated end of the word
_CUT_STEP, _CUT_WINDOW = 120, 240

Recorded = dict[str, Utterance]
"""Utterances of one voice by text."""


@cache
def _voice(name: str) -> KokoroVoice:
    shares = AGENT_VOICES[name].items()
    style = np.sum([share * kokoro().tables[table] for table, share in shares], axis=0)
    return KokoroVoice(style.astype(np.float32))


def spoken_text(part: script.Part) -> str:
    """The text that is synthesised for a part: a value is the same before any punctuation."""
    return part.text.rstrip(",.?!") + "." if part.value else part.text


def script_texts() -> list[str]:
    """All texts of which the script's lines are composed."""
    return list(
        dict.fromkeys(
            spoken_text(part) for line in script.all_lines().values() for part in line.parts
        )
    )


def single_texts() -> dict[str, str]:
    """Each word of the vocabulary; a value of one word as it stands in a line."""
    single = {wordings.bare(text): text for text in script_texts() if " " not in text}
    return {word: single.get(word, word) for word in vocabulary()}


def word_texts() -> dict[str, str]:
    """The text of the recording of each word; a value of one word has a recording already."""
    return {
        word: f"{text} {_AFTER_WORD}" if text == word else text
        for word, text in single_texts().items()
    }


def other_texts(count: int) -> list[str]:
    """Sentences that are not in the script: callers' wordings and random words, in turn."""
    random = np.random.default_rng(7)
    own = [w for intent in wordings.INTENTS for w in wordings.wordings(intent, held_out=False)]
    return [
        sentence(random) if index % 2 else own[int(random.integers(len(own)))]
        for index in range(count)
    ]


def synthesise(voice: str, text: str) -> Utterance:
    """A text in one of the agent's voices, at a fixed loudness."""
    spoken = kokoro().say(text, _voice(voice))
    return Utterance(text, _at_loudness(spoken.pcm), spoken.words, ())


def synthesise_word(voice: str, text: str) -> Utterance:
    """A text of ``word_texts``, cut after its first word: in the closure of the ``p``."""
    spoken = kokoro().say(text, replace(_voice(voice), speed=_WORD_SPEED))
    pcm, about = spoken.pcm, int(spoken.words[1][1] * SAMPLE_RATE)
    first = max(_CUT_WINDOW, about + _CUT_SEARCH[0])
    last = min(len(pcm) - _CUT_WINDOW, about + _CUT_SEARCH[1])
    places = range(first, max(first + 1, last), _CUT_STEP)
    levels = np.array([rms(pcm[at - _CUT_WINDOW : at + _CUT_WINDOW]) for at in places])
    quiet = np.flatnonzero(levels <= 1.3 * levels.min() + 0.02 * rms(pcm))
    return Utterance(text, _at_loudness(pcm)[: places[int(quiet[0])]], spoken.words[:1], ())


def _at_loudness(pcm: Pcm) -> Pcm:
    return (pcm * (_LOUDNESS / rms(pcm))).clip(-1, 1).astype(np.float32)


def _file(folder: Path, voice: str, number: int) -> Path:
    return folder / "agent" / f"{voice}-{number:04}.pt"


def record_agent(folder: Path, others: int, part: int = 0, parts: int = 1) -> None:
    """Synthesise the texts that are not on disk yet.

    Args:
        folder: Folder of the training states.
        others: Number of sentences for each voice, in addition to the script and to the words.
        part: Number of this process, from 0.
        parts: Processes that share the work.
    """
    lines = script_texts()
    words = set(word_texts().values()) - set(lines)
    texts = list(dict.fromkeys((*lines, *sorted(words), *other_texts(others))))
    known = {voice: _rows(folder, voice) for voice in AGENT_VOICES}
    for number in range(part, -(-len(texts) // _TEXTS_EACH), parts):
        for voice in AGENT_VOICES:
            path = _file(folder, voice, number)
            some = texts[number * _TEXTS_EACH : (number + 1) * _TEXTS_EACH]
            if [row["text"] for row in load_state(path).get("utterances", [])] == some:
                continue
            # A changed script moves texts to other files.
            rows = [
                known[voice].get(text)
                or _row((synthesise_word if text in words else synthesise)(voice, text))
                for text in some
            ]
            save_state(path, {"utterances": rows})


def _row(spoken: Utterance) -> dict[str, Any]:
    return {"text": spoken.text, "pcm": to_int16(spoken.pcm), "words": spoken.words}


def _rows(folder: Path, voice: str) -> dict[str, dict[str, Any]]:
    """All that is on disk of a voice, by text."""
    paths = sorted((folder / "agent").glob(f"{voice}-*.pt"))
    return {row["text"]: row for path in paths for row in load_state(path)["utterances"]}


def load_agent(folder: Path, voice: str) -> Recorded:
    """All utterances of a voice that have been recorded.

    Raises:
        StateMissing: Texts of the script or words are not among them.
    """
    recorded = {
        text: Utterance(text, from_int16(row["pcm"]), row["words"], ())
        for text, row in _rows(folder, voice).items()
    }
    if missing := {*script_texts(), *word_texts().values()} - recorded.keys():
        raise StateMissing(
            f"{len(missing)} texts of the agent are not in {folder / 'agent'}: run `agent` first"
        )
    return recorded


def compose(line: script.Line, spoken: Sequence[Utterance]) -> Utterance:
    """Join the utterances of a line's parts."""
    pieces: list[Pcm] = []
    words: list[tuple[str, float]] = []
    at = 0.0
    for part, utterance in zip(line.parts, spoken, strict=True):
        named = zip(part.text.split(), utterance.words, strict=True)
        words += [(word, at + onset) for word, (_, onset) in named]
        pause = _STOP if part.text[-1] in ".?!" else 0.0
        samples = len(utterance.pcm) + int(pause * SAMPLE_RATE)
        frames = -(-samples // FRAME_SAMPLES)
        silence = frames * FRAME_SAMPLES - len(utterance.pcm)
        pieces += [utterance.pcm, np.zeros(silence, np.float32)]
        at += frames * FRAME_SECONDS
    return Utterance(line.text, np.concatenate(pieces[:-1]), tuple(words), ())


def script_line(text: str, recorded: Recorded) -> Utterance:
    """A line of the script, of recorded parts."""
    line = script.all_lines()[text]
    return compose(line, [recorded[spoken_text(part)] for part in line.parts])


@cache
def reference(voice: str, text: str) -> Utterance:
    """A line of the script, synthesised now; any other text as one part."""
    line = script.all_lines().get(text, script.Line((script.Part(text),)))
    return compose(line, [synthesise(voice, spoken_text(part)) for part in line.parts])
