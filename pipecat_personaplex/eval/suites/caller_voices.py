"""Callers for generated suites: spoken by espeak-ng, or cut from nano's bundled recordings."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import UserError
from pipecat_personaplex.eval.voice_activity import caller_spans

ESPEAK = "espeak-ng"
_SAMPLES = Path(__file__).parents[2] / "nano" / "samples"
_AUDIBLE = 1e-3
_VOICES = ("en-us+f4", "en-us+m5", "en-us+Lee", "en-us+belinda", "en-us+john", "en-gb-x-rp+anika")
_TURN_GAP_SECONDS = 1.5  # between two turns of a bundled caller, never inside one
# Their background noise rises and falls, so only loud sounds are speech; the weak sounds at the
# edges of a turn are part of it.
_NOISY_PEAK_SHARE, _EDGE_SECONDS = 0.2, 0.06
_LEVEL = 0.3  # peak of every clip


@dataclass(frozen=True)
class Question:
    """A topic of a role: how callers ask, and what a right answer contains.

    Attributes:
        texts: Wordings.
        wanted: A right answer contains at least one of these, in lower case.
    """

    texts: Sequence[str]
    wanted: Sequence[str]


@dataclass(frozen=True)
class Clip:
    """One utterance of a caller.

    Attributes:
        pcm: float32 [n] mono 24 kHz, from the first sound to the last.
        text: What is said; for a bundled recording, its topic.
        wanted: As in ``Question``; empty for a remark that needs no answer.
    """

    pcm: Pcm
    text: str
    wanted: Sequence[str] = ()


@dataclass(frozen=True)
class Scene:
    """A role of the agent and clips of a caller who talks to it.

    Attributes:
        prompt: The agent's text prompt.
        questions: Clips that need an answer.
        remarks: Statements, for narrations and for speech to other people.
        sounds: Short sounds of a listener.
    """

    prompt: str
    questions: Sequence[Clip]
    remarks: Sequence[Clip]
    sounds: Sequence[Clip]


class CallerVoices(Protocol):
    """Where the callers of a generated suite come from.

    Attributes:
        name: For the run's description.
    """

    name: str

    def scene(self, index: int) -> Scene:
        """The scene of item ``index``."""
        ...

    def other(self, index: int) -> Clip:
        """A remark by another voice than that of ``scene(index)``."""
        ...


def has_recordings() -> bool:
    """Whether this installation has nano's recordings; a checkout has, a wheel does not."""
    return any(_SAMPLES.glob("*.ogg"))


def has_espeak() -> bool:
    """Whether espeak-ng is installed."""
    return shutil.which(ESPEAK) is not None


@lru_cache(maxsize=1024)
def _speak(text: str, voice: str, rate: int, pitch: int) -> Pcm:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoken.wav"
        command = [ESPEAK, "-v", voice, "-s", str(rate), "-p", str(pitch), "-w", str(path)]
        try:
            subprocess.run([*command, "--", text], check=True, capture_output=True)
        except FileNotFoundError:
            raise UserError("espeak-ng is not installed: apt-get install espeak-ng") from None
        except subprocess.CalledProcessError as error:
            raise UserError(f"espeak-ng failed: {error.stderr.decode().strip()}") from None
        return trimmed(read_audio(path))


def spoken_question(text: str, index: int) -> Pcm:
    """A question in the voice of caller ``index``; the same every time.

    Raises:
        UserError: espeak-ng is not installed.
    """
    voice = _VOICES[index % len(_VOICES)]
    return _speak(text, voice, 145 + 10 * (index % 4), 40 + 5 * (index % 5))


def trimmed(pcm: Pcm) -> Pcm:
    """A clip from its first sound to its last, at a common level."""
    loud = np.flatnonzero(np.abs(pcm) > _AUDIBLE)
    if not len(loud):
        return pcm[:0]
    part = pcm[loud[0] : loud[-1] + 1]
    scaled: Pcm = (part * (_LEVEL / np.abs(part).max())).astype(np.float32)
    return scaled


class EspeakVoices:
    """Callers that espeak-ng speaks: six voices at several rates and pitches."""

    name = "espeak-ng"

    def __init__(
        self,
        roles: Mapping[str, Sequence[Question]],
        remarks: Sequence[str],
        sounds: Sequence[str],
    ):
        self._roles = list(roles.items())
        self._remarks = remarks
        self._sounds = sounds

    def scene(self, index: int) -> Scene:
        """Voice, role and wordings change with the index."""
        prompt, questions = self._roles[index % len(self._roles)]
        clips = []
        for number, question in enumerate(questions):
            text = question.texts[(index + number) % len(question.texts)]
            clips.append(Clip(spoken_question(text, index), text, question.wanted))
        start = index % len(clips)
        return Scene(
            prompt,
            clips[start:] + clips[:start],
            self._clips(self._remarks, index),
            self._clips(self._sounds, index),
        )

    def other(self, index: int) -> Clip:
        """The next voice."""
        return self._clips(self._remarks, index + 1)[index % len(self._remarks)]

    def _clips(self, texts: Sequence[str], index: int) -> list[Clip]:
        clips = [Clip(spoken_question(text, index), text) for text in texts]
        start = index % len(clips)
        return clips[start:] + clips[:start]


class BundledVoices:
    """The callers of nano's bundled recordings, which are stereo with the caller on the left.

    Args:
        wanted: By topic, what a right answer contains.
    """

    name = "the recordings bundled with nano"

    def __init__(self, wanted: Mapping[str, Sequence[str]]):
        calls = sorted(_SAMPLES.glob("*.ogg"))
        self._scenes = [_bundled_call(path, wanted) for path in calls]

    def scene(self, index: int) -> Scene:
        """The call changes with the index; its clips rotate."""
        return self._rotated(index)

    def other(self, index: int) -> Clip:
        """A clip of the next call."""
        return self._rotated(index + 1).remarks[0]

    def _rotated(self, index: int) -> Scene:
        scene = self._scenes[index % len(self._scenes)]
        start = (index // len(self._scenes)) % len(scene.questions)
        clips = [*scene.questions[start:], *scene.questions[:start]]
        return Scene(scene.prompt, clips, clips[::-1], scene.sounds)


@lru_cache(maxsize=8)
def _stereo_left(path: Path) -> Pcm:
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    left: Pcm = samples[:, 0]
    return left if rate == SAMPLE_RATE else soxr.resample(left, rate, SAMPLE_RATE)


def _bundled_call(path: Path, wanted: Mapping[str, Sequence[str]]) -> Scene:
    """Cut the caller's turns; the text file beside the recording names prompt and topics."""
    lines = path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    notes = dict(line.split(": ", 1) for line in lines if ": " in line)
    topics = [topic.strip() for topic in notes["asked"].split(",")]
    pcm = _stereo_left(path)
    turns: list[tuple[float, float]] = []
    for span in caller_spans(pcm, peak_share=_NOISY_PEAK_SHARE):
        if turns and span.start - turns[-1][1] < _TURN_GAP_SECONDS:
            turns[-1] = (turns[-1][0], span.end)
        else:
            turns.append((span.start, span.end))
    clips = []
    for (start, end), topic in zip(turns, topics, strict=False):
        first = max(0.0, start - _EDGE_SECONDS)
        part = pcm[int(first * SAMPLE_RATE) : int((end + _EDGE_SECONDS) * SAMPLE_RATE)]
        clips.append(Clip(trimmed(part), topic, wanted.get(topic, ())))
    # A listener's sound: the first fifth of a second of a turn, faded out.
    fade = np.linspace(1, 0, SAMPLE_RATE // 5, dtype=np.float32)
    sounds = [Clip(clip.pcm[: len(fade)] * fade[: len(clip.pcm)], "mhm") for clip in clips]
    return Scene(notes["prompt"], clips, clips, sounds)
