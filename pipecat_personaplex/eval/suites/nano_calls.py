"""Generated calls of every kind of event, about what nano, the bundled model, knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.items import EVENT_KINDS, Event, EventKind, Item
from pipecat_personaplex.eval.suites.caller_voices import (
    BundledVoices,
    CallerVoices,
    Clip,
    EspeakVoices,
    Question,
    has_espeak,
    has_recordings,
)
from pipecat_personaplex.eval.suites.suite_files import TEACHER_PROMPT, Suite

ITEMS_PER_KIND = 26
"""Items of each kind of event: 208 in all."""
_RESTAURANT_PROMPT = (
    "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
    "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
    "(scrambled eggs with jalapenos, $10.25). Open until 10:30 pm. Address: 12 Market Street."
)
_ROLES = {
    _RESTAURANT_PROMPT: (
        Question(("What's on your menu tonight?", "Tell me your menu."), ("classic and spicy",)),
        Question(("Until when are you open?", "When do you close tonight?"), ("until ten",)),
        Question(("Can I pay with my card?", "Do you take cards?"), ("card or cash",)),
        Question(("What can I drink?", "Which drinks do you have?"), ("coffee",)),
        Question(("On what street are you?", "Where are you located?"), ("market street",)),
        Question(("How long must I wait?", "How long will it take?"), ("fifteen",)),
    ),
    TEACHER_PROMPT: (
        Question(("Why is the sky so blue?", "What makes the sky blue?"), ("blue light",)),
        Question(("How many planets are there?", "How many planets do we have?"), ("eight",)),
        Question(("What is the capital of France?", "Name the capital of France."), ("paris",)),
        Question(("Which ocean is the largest?", "What is the largest ocean?"), ("pacific",)),
        Question(("When does water boil?", "How hot is boiling water?"), ("hundred degrees",)),
        Question(("How far away is the moon?", "How far is the moon?"), ("moon is very far",)),
    ),
}
_REMARKS = (
    "Yesterday I walked along the river with my sister.",
    "We saw a small boat, and two men were fishing.",
    "Then it began to rain, and we went home by bus.",
    "The evening was quiet, and we cooked some soup.",
)
_SOUNDS = ("Mhm.", "Okay.", "I see.")
# Topics of the bundled recordings; the answers are nano's.
_BUNDLED_WANTED = {
    topic: words
    for topic, words in (
        ("hello", ("get you", "shall we learn")),
        ("thanks", ("welcome", "pleasure")),
        ("language", ("every day",)),
        ("planets", ("eight",)),
        ("exam", ("sleep well",)),
        ("card", ("card or cash",)),
        ("in_classic", ("poached eggs",)),
    )
}
_LEAD_SECONDS, _ANSWER_SECONDS = 0.8, 4.0
_SILENCE_SECONDS = 6.0
_ASIDE_GAIN, _THIRD_PARTY_GAIN = 0.35, 0.2


def caller_voices(bundled: bool = False) -> CallerVoices:
    """Callers that espeak-ng speaks, or those of the bundled recordings.

    Args:
        bundled: Whether the recordings are preferred where there are both.

    Raises:
        UserError: There is neither.
    """
    if has_recordings() and (bundled or not has_espeak()):
        return BundledVoices(_BUNDLED_WANTED)
    if has_espeak():
        return EspeakVoices(_ROLES, _REMARKS, _SOUNDS)
    raise UserError(
        "callers need espeak-ng, or nano's recordings, which only a checkout has: apt-get install "
        "espeak-ng"
    )


def generate(voices: CallerVoices, per_kind: int) -> Iterator[Item]:
    """Yield ``per_kind`` items of each kind of event; the same for the same voices.

    Raises:
        UserError: espeak-ng fails.
    """
    for kind in EVENT_KINDS:
        for index in range(per_kind):
            yield _item(voices, kind, index)


class _Recording:
    """A caller's recording under construction."""

    def __init__(self, random: np.random.Generator):
        self.random = random
        # Up to one frame of random delay: words may start anywhere inside a frame.
        self.now = _LEAD_SECONDS + float(random.uniform(0, 0.08))
        self.events: list[Event] = []
        self._parts: list[tuple[int, Pcm]] = []

    def say(self, pcm: Pcm, wait: float = 0.0, gain: float = 1.0) -> tuple[float, float]:
        """Add speech after ``wait`` seconds; returns its start and end."""
        first = round((self.now + wait) * SAMPLE_RATE)
        self._parts.append((first, pcm * np.float32(gain)))
        start, self.now = first / SAMPLE_RATE, (first + len(pcm)) / SAMPLE_RATE
        return start, self.now

    def mark(self, kind: EventKind, start: float, end: float, text: str = "") -> None:
        self.events.append(Event(kind, start, end, text))

    def finish(self, wait: float) -> Pcm:
        pcm = np.zeros(round((self.now + wait) * SAMPLE_RATE), np.float32)
        for first, part in self._parts:
            pcm[first : first + len(part)] += part
        level = 10 ** (self.random.uniform(-75, -55) / 20)
        noise = self.random.standard_normal(len(pcm), np.float32) * np.float32(level)
        return (pcm + noise).clip(-1, 1).astype(np.float32)


def _item(voices: CallerVoices, kind: EventKind, index: int) -> Item:
    random = np.random.default_rng([EVENT_KINDS.index(kind), index])
    scene = voices.scene(index)
    recording = _Recording(random)
    question, other = scene.questions[0], scene.questions[1]
    wanted: Clip | None = None
    wait = _ANSWER_SECONDS
    if kind == "turn_end":
        _, end = recording.say(question.pcm)
        recording.mark("turn_end", end, end, question.text)
        wanted = question
    elif kind == "pause":
        cut = _quietest(question.pcm)
        _, end = recording.say(question.pcm[:cut])
        start, last = recording.say(question.pcm[cut:], float(random.uniform(0.4, 0.9)))
        recording.mark("pause", end, start, question.text)
        recording.mark("turn_end", last, last, question.text)
        wanted = question
    elif kind == "narration":
        begin = recording.now
        for remark in scene.remarks[:4]:
            recording.say(remark.pcm, float(random.uniform(0.1, 0.3)))
        recording.mark("narration", begin, recording.now)
        wait = 0.5
    elif kind == "silence":
        recording.now, wait = _SILENCE_SECONDS, 0.0
        recording.mark("silence", 0.0, _SILENCE_SECONDS)
    else:
        recording.say(question.pcm)
        overlap = float(random.uniform(0.9, 1.3))  # while the agent answers
        wanted = _overlap(recording, kind, overlap, other, scene.sounds[0], scene.remarks[0],
                          voices.other(index))  # fmt: skip
    return Item(
        id=f"{kind}/{index:03}",
        group=kind,
        pcm=recording.finish(wait),
        events=tuple(recording.events),
        prompt=scene.prompt,
        wanted=tuple(wanted.wanted) if wanted else (),
    )


def _overlap(
    recording: _Recording,
    kind: EventKind,
    wait: float,
    question: Clip,
    sound: Clip,
    remark: Clip,
    other: Clip,
) -> Clip | None:
    """Add speech over the agent's answer; returns the clip that needs an answer, if any."""
    clip, gain = {
        "interruption": (question, 1.0),
        "backchannel": (sound, 0.5),
        "aside": (remark, _ASIDE_GAIN),
        "third_party": (other, _THIRD_PARTY_GAIN),
    }[kind]
    start, end = recording.say(clip.pcm, wait, gain)
    recording.mark(kind, start, end, clip.text)
    return clip if kind == "interruption" else None


def _quietest(pcm: Pcm) -> int:
    """The sample in the middle of a clip at which its sound is weakest: a gap between words."""
    hop = SAMPLE_RATE // 50
    levels = np.square(pcm[: len(pcm) // hop * hop].reshape(-1, hop)).mean(axis=1)
    first, last = len(levels) * 3 // 10, max(len(levels) * 7 // 10, len(levels) * 3 // 10 + 1)
    return (first + int(np.argmin(levels[first:last]))) * hop


def load(data: Path | None) -> Iterator[Item]:
    """Yield 208 items; needs no data.

    Raises:
        UserError: Data was given, or there are no callers.
    """
    if data is not None:
        raise UserError("suite nano generates its calls; leave out --data")
    return generate(caller_voices(), ITEMS_PER_KIND)


SUITE = Suite("nano", "generated calls for nano", "", load)
