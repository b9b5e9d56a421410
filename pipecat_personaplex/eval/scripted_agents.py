"""Agents that follow a script, so that their right scores are known exactly.

Their sound is nano's own, cut so that speech starts and ends on the detector's grid of 20 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipecat_personaplex.audio import AUDIBLE_RMS, Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.eval.items import Event, Item
from pipecat_personaplex.words import Word

ANSWER_SECONDS = 0.3
YIELD_SECONDS = 0.4
BACKCHANNEL_EVERY_SECONDS = 4.0
BACKCHANNEL_SECONDS = 0.4
_REPLY_SECONDS = 1.6
_HOP = SAMPLE_RATE // 50
_WORD_SECONDS = 0.2


@dataclass(frozen=True)
class Utterance:
    """Speech of a scripted agent, in seconds on the detector's grid of 20 ms.

    Attributes:
        start: Its start.
        end: Its end.
    """

    start: float
    end: float


Script = Callable[[Item], Sequence[Utterance]]
"""What an agent says in an item."""


def always_silent(item: Item) -> list[Utterance]:
    """Says nothing."""
    return []


def always_talking(item: Item) -> list[Utterance]:
    """Speaks from the start to the end of the recording."""
    return [Utterance(0.0, grid(len(item.pcm) / SAMPLE_RATE))]


def answers(item: Item) -> list[Utterance]:
    """Answers each turn and each interruption after 300 ms, and says nothing else."""
    return [
        Utterance(event.end + ANSWER_SECONDS, event.end + ANSWER_SECONDS + _REPLY_SECONDS)
        for event in item.events
        if event.kind in ("turn_end", "interruption")
    ]


def yields(item: Item) -> list[Utterance]:
    """Is interrupted while it speaks, and stops after 400 ms; answers as above."""
    speaking = [
        Utterance(max(0.0, event.start - 1.0), event.start + YIELD_SECONDS)
        for event in item.events
        if event.kind == "interruption"
    ]
    return sorted([*speaking, *answers(item)], key=lambda each: each.start)


def backchannels(item: Item) -> list[Utterance]:
    """Says "uh-huh" for 0.4 s, every 4 s of a narration."""
    found = []
    for event in item.events:
        if event.kind == "narration":
            start = event.start + BACKCHANNEL_EVERY_SECONDS
            while start + BACKCHANNEL_SECONDS <= event.end:
                found.append(Utterance(start, start + BACKCHANNEL_SECONDS))
                start += BACKCHANNEL_EVERY_SECONDS
    return found


def nods(item: Item) -> list[Utterance]:
    """Says "uh-huh" 0.2 s into a pause; answers as above."""
    found = [
        Utterance(event.start + 0.2, event.start + 0.2 + BACKCHANNEL_SECONDS)
        for event in item.events
        if event.kind == "pause"
    ]
    return [*found, *answers(item)]


SCRIPTS: dict[str, Script] = {
    "always silent": always_silent,
    "always talking": always_talking,
    "answers at 300 ms": answers,
    "yields at 400 ms": yields,
    "nods in a pause": nods,
    "backchannels every 4 s": backchannels,
}


def perform(item: Item, script: Script, voice: Pcm) -> tuple[Pcm, list[Word]]:
    """Render an agent's audio and words.

    Args:
        item: The call; its events must be on the detector's grid.
        script: What the agent says.
        voice: Speech without gaps, see ``solid_speech``.

    Returns:
        Audio as long as the recording, and words: one for each 0.2 s of speech; "uh-huh" is one.
    """
    pcm = np.zeros(len(item.pcm), np.float32)
    words: list[Word] = []
    for utterance in script(item):
        start, end = (round(time * SAMPLE_RATE) for time in (utterance.start, utterance.end))
        end = min(end, len(pcm))
        pcm[start:end] = np.resize(voice, end - start)
        seconds = (end - start) / SAMPLE_RATE
        count = 1 if seconds <= BACKCHANNEL_SECONDS else round(seconds / _WORD_SECONDS)
        times = np.linspace(utterance.start, utterance.start + seconds, count + 1).round(6)
        name = "uh-huh" if count == 1 else "word"
        words += [Word(name, float(a), float(b)) for a, b in pairwise(times)]
    return pcm, words


def solid_speech(pcm: Pcm) -> Pcm:
    """The loud parts of a recording of nano, so that no detector finds a gap in them.

    Returns:
        float32 [n], at least one second, a whole number of 20 ms.
    """
    hops = pcm[: len(pcm) // _HOP * _HOP].reshape(-1, _HOP)
    loud = hops[np.sqrt(np.mean(np.square(hops), axis=1)) > 2 * AUDIBLE_RMS]
    if not len(loud):
        raise ValueError("the recording is silent")
    return np.resize(loud.ravel(), max(len(loud) * _HOP, SAMPLE_RATE))


def grid(seconds: float) -> float:
    """The last point of the detector's grid at or before a time."""
    return round(int(seconds * 50 + 1e-6) / 50, 2)


def scripted_items() -> list[Item]:
    """One call for each kind of event, with silence for a caller and times on the grid."""
    calls: dict[str, tuple[float, list[Event]]] = {
        "turn": (6.0, [Event("turn_end", 2.0, 2.0)]),
        "pause": (6.0, [Event("pause", 1.5, 2.2), Event("turn_end", 3.0, 3.0)]),
        "narration": (21.0, [Event("narration", 0.0, 20.4)]),
        "interruption": (9.0, [Event("interruption", 3.0, 4.5)]),
        "backchannel": (7.0, [Event("backchannel", 3.0, 3.4)]),
        "aside": (8.0, [Event("aside", 3.0, 4.2)]),
        "third_party": (8.0, [Event("third_party", 3.0, 4.2)]),
        "silence": (5.0, [Event("silence", 0.0, 5.0)]),
    }
    return [
        Item(name, name, np.zeros(round(seconds * SAMPLE_RATE), np.float32), tuple(events))
        for name, (seconds, events) in calls.items()
    ]
