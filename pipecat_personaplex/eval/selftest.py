"""The self-test: scorers against agents whose scores are known, and nano within ranges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.engine.converse_many import ConversationJob
from pipecat_personaplex.engine.engine import Engine
from pipecat_personaplex.eval import scripted_agents
from pipecat_personaplex.eval.items import Item
from pipecat_personaplex.eval.scoring import item_score
from pipecat_personaplex.eval.scoring.aggregate import ItemValues, Summary, summarize
from pipecat_personaplex.eval.scoring.item_score import Heard, Rules
from pipecat_personaplex.eval.suites.nano_calls import caller_voices, generate
from pipecat_personaplex.eval.voice_activity import energy_spans
from pipecat_personaplex.words import Word, words_of

_TOLERANCE = 1e-6
_QUIRK_RATE = 16_000  # what the compat rules take 24 kHz for
_VOICE = "NATF2"
_MODEL_SEEDS = (0,)

# What each scripted agent scores, computed by hand from the events in ``scripted_items``.
_SILENT_COMMON = {
    "turn/turn_end.tor": 0.0,
    "pause/pause.tor": 0.0,
    "pause/turn_end.tor": 0.0,
    "narration/narration.tor": 0.0,
    "narration/narration.frequency": 0.0,
    "interruption/interruption.tor": 0.0,
    "silence/silence.spoke": 0.0,
    "silence/silence.onsets": 0.0,
}
_IGNORED = {
    "backchannel/backchannel.ignored": 1.0,
    "aside/aside.ignored": 1.0,
    "third_party/third_party.ignored": 1.0,
}
# An answer 0.3 s after a turn that ends at 2.0 s (turn) or 3.0 s (pause).
_ANSWERED_COMPAT = {
    "turn/turn_end.tor": 1.0,
    "turn/turn_end.latency": 0.3,
    # Any turn in the recording counts as one in the pause: a quirk.
    "pause/pause.tor": 1.0,
    "pause/turn_end.tor": 1.0,
    "pause/turn_end.latency": 0.3,
    "interruption/interruption.tor": 1.0,
    "interruption/interruption.latency": 0.3,
    "interruption/interruption.response": 0.3,
}
_ANSWERED_FIXED = {
    "turn/turn_end.tor": 1.0,
    "turn/turn_end.latency": 0.3,
    "turn/turn_end.offset": 0.3,
    "turn/turn_end.early": 0.0,
    "pause/turn_end.tor": 1.0,
    "pause/turn_end.latency": 0.3,
    "pause/turn_end.offset": 0.3,
    "pause/turn_end.early": 0.0,
    "interruption/interruption.tor": 1.0,
    "interruption/interruption.latency": 0.3,
    "interruption/interruption.offset": 0.3,
    "interruption/interruption.early": 0.0,
}
_YIELDED = {"interruption/interruption.stop": 0.4}
EXPECTED: Mapping[tuple[str, Rules], Mapping[str, float]] = {
    ("always silent", "compat"): _SILENT_COMMON,
    ("always silent", "fixed"): _SILENT_COMMON | _IGNORED,
    ("always talking", "compat"): {
        "turn/turn_end.tor": 1.0,
        "turn/turn_end.latency": 0.0,  # the first word of the recording, clamped: a quirk
        "pause/pause.tor": 1.0,
        "pause/turn_end.tor": 1.0,
        "pause/turn_end.latency": 0.0,
        "narration/narration.tor": 1.0,
        "narration/narration.frequency": 0.0,
        "interruption/interruption.tor": 1.0,
        "interruption/interruption.latency": 0.0,
        "interruption/interruption.stop": 1.5,
        "backchannel/backchannel.stop": 0.4,
        "aside/aside.stop": 1.2,
        "third_party/third_party.stop": 1.2,
        "silence/silence.spoke": 1.0,
        "silence/silence.onsets": 1.0,
    },
    ("always talking", "fixed"): {
        "turn/turn_end.tor": 1.0,
        "turn/turn_end.latency": 0.0,
        "turn/turn_end.offset": -2.0,
        "turn/turn_end.early": 1.0,
        "pause/pause.tor": 0.0,  # no utterance starts in the pause
        "pause/turn_end.tor": 1.0,
        "pause/turn_end.latency": 0.0,
        "pause/turn_end.offset": -3.0,
        "pause/turn_end.early": 1.0,
        "narration/narration.tor": 1.0,
        "narration/narration.frequency": 0.0,
        "interruption/interruption.tor": 1.0,
        "interruption/interruption.latency": 0.1,  # its words start at odd tenths
        "interruption/interruption.offset": 0.1,
        "interruption/interruption.early": 0.0,
        "interruption/interruption.stop": 6.0,
        "interruption/interruption.stopped": 0.0,
        "backchannel/backchannel.stop": 0.4,
        "aside/aside.stop": 1.2,
        "third_party/third_party.stop": 1.2,
        "silence/silence.spoke": 1.0,
        "silence/silence.onsets": 1.0,
    }
    | _IGNORED,
    ("answers at 300 ms", "compat"): _SILENT_COMMON | _ANSWERED_COMPAT,
    ("answers at 300 ms", "fixed"): _SILENT_COMMON | _IGNORED | _ANSWERED_FIXED,
    ("yields at 400 ms", "compat"): _SILENT_COMMON | _ANSWERED_COMPAT | _YIELDED,
    ("yields at 400 ms", "fixed"): _SILENT_COMMON
    | _IGNORED
    | _ANSWERED_FIXED
    | _YIELDED
    | {"interruption/interruption.stopped": 1.0},
    # The nod is the first word of the recording, which compat takes for the answer.
    ("nods in a pause", "compat"): _SILENT_COMMON
    | _ANSWERED_COMPAT
    | {"pause/turn_end.latency": 0.0},
    ("nods in a pause", "fixed"): _SILENT_COMMON | _IGNORED | _ANSWERED_FIXED,
    # Five, at 4, 8, 12, 16 and 20 s: in a recording of 21 s and a narration of 20.4 s.
    ("backchannels every 4 s", "compat"): _SILENT_COMMON
    | {"narration/narration.frequency": 5 / 21},
    ("backchannels every 4 s", "fixed"): _SILENT_COMMON
    | _IGNORED
    | {"narration/narration.frequency": 5 / 20.4},
}

# Ranges for nano on its bundled callers, wide enough for any seed.
NANO_RANGES: Mapping[str, tuple[float, float]] = {
    "turn_end/turn_end.tor": (0.5, 1.0),
    "turn_end/turn_end.latency": (0.0, 1.6),
    "pause/turn_end.tor": (0.4, 1.0),
    "silence/silence.onsets": (0.0, 1.0),
    "interruption/interruption.tor": (0.3, 1.0),
    "narration/narration.frequency": (0.0, 0.5),
}


@dataclass(frozen=True)
class Check:
    """One comparison of the self-test.

    Attributes:
        agent: The agent.
        rules: The rule set.
        metric: Name of the score.
        value: What the scorer gives; None if it gives nothing.
        low: Smallest right value; None if the score must not exist.
        high: Largest right value.
    """

    agent: str
    rules: Rules
    metric: str
    value: float | None
    low: float | None
    high: float | None

    @property
    def passed(self) -> bool:
        """Whether the value is right."""
        if self.low is None or self.high is None or self.value is None:
            return self.low is None and self.value is None
        return self.low - _TOLERANCE <= self.value <= self.high + _TOLERANCE

    def __str__(self) -> str:
        wanted = "nothing" if self.low is None else f"{self.low:.3f}"
        if self.high is not None and self.high != self.low:
            wanted += f" to {self.high:.3f}"
        value = "nothing" if self.value is None else f"{self.value:.3f}"
        mark = "ok  " if self.passed else "FAIL"
        return f"{mark} {self.agent}, {self.rules}: {self.metric} {value} (expected {wanted})"


def record_voice(engine: Engine) -> Pcm:
    """Speech of nano without gaps, from its answer to a bundled caller."""
    scene = caller_voices(bundled=True).scene(0)
    pcm = np.concatenate([scene.questions[0].pcm, np.zeros(4 * SAMPLE_RATE, np.float32)])
    talk = engine.converse(Persona(_VOICE, scene.prompt), pcm, SamplingParams(seed=0))
    return scripted_agents.solid_speech(talk.pcm)


def check_scripted(voice: Pcm) -> Iterator[Check]:
    """Score the scripted agents and compare with the known values.

    Args:
        voice: Speech without gaps: ``record_voice``.
    """
    items = scripted_agents.scripted_items()
    for (agent, rules), expected in EXPECTED.items():
        script = scripted_agents.SCRIPTS[agent]
        heard = [_heard(item, *scripted_agents.perform(item, script, voice)) for item in items]
        found = _score(items, heard, rules)
        for metric in [*expected, *sorted(found.keys() - expected.keys())]:
            value = found[metric].mean if metric in found else None
            wanted = expected.get(metric)
            yield Check(agent, rules, metric, value, wanted, wanted)


def check_nano(engine: Engine, per_kind: int) -> Iterator[Check]:
    """Run nano on generated calls of every kind of event, and compare with its ranges.

    Args:
        engine: A started engine with nano.
        per_kind: Calls of each kind.
    """
    items = list(generate(caller_voices(bundled=True), per_kind))
    jobs = [
        ConversationJob(index, Persona(_VOICE, item.prompt), item.pcm, SamplingParams(seed=seed))
        for seed in _MODEL_SEEDS
        for index, item in enumerate(items)
    ]
    heard: dict[int, Heard] = {}
    for finished in engine.converse_many(jobs):
        if finished.error is not None:
            raise finished.error
        assert finished.conversation is not None
        index, talk = finished.job.label, finished.conversation
        words = words_of(frame.text for frame in talk.frames)
        heard[index] = _heard(items[index], talk.pcm, words)
    found = _score(items, [heard[index] for index in range(len(items))], "fixed")
    for metric, (low, high) in NANO_RANGES.items():
        value = found[metric].mean if metric in found else None
        yield Check("nano", "fixed", metric, value, low, high)


def _heard(item: Item, pcm: Pcm, words: Sequence[Word]) -> Heard:
    spans, quirk = (energy_spans(pcm, rate) for rate in (SAMPLE_RATE, _QUIRK_RATE))
    return Heard(words, spans, quirk, len(item.pcm) / SAMPLE_RATE, {})


def _score(items: list[Item], heard: list[Heard], rules: Rules) -> dict[str, Summary]:
    return summarize(
        (
            ItemValues(item.id, item.group, 0, item_score.score_item(item.events, each, rules))
            for item, each in zip(items, heard, strict=True)
        ),
        rules == "compat",
    )
