"""The pool: clips of agents and callers, encoded, from which dialogues are composed.

Callers lie in files of a few each, so that several processes can make them and the training reads
new ones while it runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.nano.progress import StateMissing, load_state, save_state

CALLERS_EACH = 10  # in a file
_UNSEEN_EVERY = 16
_CLIPS = ("agent", "words")  # of the agent, by voice and text
_FORMAT = 2  # of pool.pt


@dataclass(frozen=True)
class AgentClip:
    """A sentence in one of the agent's voices.

    Attributes:
        text: The sentence.
        codes: [F, 8], from the first frame to the end of its decay.
        onsets: The frame in which each word of ``text.split()`` starts.
        copied: Numbers of the words that are copied from the prompt.
    """

    text: str
    codes: Tensor
    onsets: list[int]
    copied: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class UserClip:
    """A caller's turn.

    Attributes:
        intent: The intent of the turn.
        codes: [F, 8], including background before and after the words.
        start: The frame in which the words start.
        end: The first frame after the words.
        word_ends: For each word, the first frame after it and its index in
            ``wordings.caller_words``.
        story_end: The first frame after a story that precedes the question; None without one.
    """

    intent: str
    codes: Tensor
    start: int
    end: int
    word_ends: list[tuple[int, int]]
    story_end: int | None = None


@dataclass
class Caller:
    """One voice over one background.

    Attributes:
        background: Codes of the background without words, [F, 8].
        clips: Turns, by intent.
    """

    background: Tensor
    clips: dict[str, list[UserClip]] = field(default_factory=dict)


@dataclass
class Pool:
    """All clips from which dialogues are composed.

    Attributes:
        silence: The 8 codes of digital silence.
        sine: The 8 codes of a 440 Hz tone.
        voices: Codes of several voice prompts for each agent voice, each
            [VOICE_SAMPLE_FRAMES, 8].
        agent: The script's sentences in each agent voice, by text.
        words: The words that each agent voice can say by themselves, by the word in lower case.
        callers: The callers.
        unseen: Callers that measure the training and are not part of it: one file in 16.
    """

    silence: list[int]
    sine: list[int]
    voices: dict[str, list[Tensor]]
    agent: dict[str, dict[str, AgentClip]]
    words: dict[str, dict[str, AgentClip]] = field(default_factory=dict)
    callers: list[Caller] = field(default_factory=list)
    unseen: list[Caller] = field(default_factory=list)
    _read: set[str] = field(default_factory=set, repr=False)

    def save(self, folder: Path) -> None:
        """Write the agents' clips; ``save_callers`` writes the callers."""
        parts = ("silence", "sine", "voices")
        state = {"format": _FORMAT} | {name: getattr(self, name) for name in parts}
        for name in _CLIPS:
            voices = getattr(self, name).items()
            state[name] = {voice: _columns(clips) for voice, clips in voices}
        save_state(folder / "pool.pt", state)

    @classmethod
    def load(cls, folder: Path) -> Pool:
        """Read what ``save`` and ``save_callers`` have written.

        Raises:
            StateMissing: There is no pool, or one of an older recipe.
        """
        if not (state := load_state(folder / "pool.pt")):
            raise StateMissing(f"no clips of the agent in {folder / 'pool.pt'}: run `clips` first")
        if state.pop("format", None) != _FORMAT:
            raise StateMissing(
                f"{folder / 'pool.pt'} is of an older recipe: delete it and {folder / 'callers'}, "
                "and run `clips`"
            )
        for name in _CLIPS:
            state[name] = {voice: _clips(columns) for voice, columns in state[name].items()}
        pool = cls(**state)
        pool.read_new_callers(folder)
        return pool

    def read_new_callers(self, folder: Path) -> None:
        """Add the callers of files that were not there before."""
        for path in sorted((folder / "callers").glob("*.pt")):
            if path.name not in self._read:
                self._read.add(path.name)
                callers = self.unseen if measures_training(path) else self.callers
                callers += map(_caller, load_state(path)["callers"])


def _columns(clips: dict[str, AgentClip]) -> dict[str, Any]:
    """The clips of a voice for a file. As thousands of small tensors they would load slowly."""
    codes = [clip.codes for clip in clips.values()]
    return {
        "key": list(clips),
        "text": [clip.text for clip in clips.values()],
        "codes": torch.cat(codes),  # [F of all clips, 8]
        "frames": list(map(len, codes)),
        "onsets": [clip.onsets for clip in clips.values()],
        "copied": [clip.copied for clip in clips.values()],
    }


def _clips(columns: dict[str, Any]) -> dict[str, AgentClip]:
    """The clips of ``_columns``."""
    codes = columns["codes"].split(columns["frames"])
    fields = zip(columns["text"], codes, columns["onsets"], columns["copied"], strict=True)
    clips = (AgentClip(*each) for each in fields)
    return dict(zip(columns["key"], clips, strict=True))


def measures_training(path: Path) -> bool:
    """Whether the callers of a file, with clips or turns, measure the training only."""
    return int(path.stem) % _UNSEEN_EVERY == _UNSEEN_EVERY - 1


def callers_file(folder: Path, number: int) -> Path:
    """The file of callers ``number * CALLERS_EACH`` and following."""
    return folder / "callers" / f"{number:04}.pt"


def save_callers(path: Path, callers: list[Caller]) -> None:
    """Write callers to a file."""
    save_state(path, {"callers": [asdict(caller) for caller in callers]})


def _caller(state: dict[str, Any]) -> Caller:
    clips = {
        intent: [UserClip(**clip) for clip in clips] for intent, clips in state["clips"].items()
    }
    return Caller(state["background"], clips)
