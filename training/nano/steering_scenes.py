"""Scenes with nano and a spoken caller that try a session's ``say``, ``hush`` and ``hold``.

Times are those of the audio: from the frame before which a method was called to the sample at which
the agent is heard.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.engine.converse import Conversation
from pipecat_personaplex.engine.engine import Engine
from pipecat_personaplex.interface import Speech
from pipecat_personaplex.session import Session
from pipecat_personaplex.words import words_of
from training.nano import script, wordings
from training.nano.agent_speech import reference
from training.nano.answers import agent_text_between, is_right
from training.nano.clips import Background
from training.nano.codec_data import add_at
from training.nano.espeak import Pcm
from training.nano.evaluate import audible, speech_stoi
from training.nano.noise import rms
from training.nano.turns import speak_turn
from training.nano.voices import AGENT_VOICES, held_out_voices

_HOP_SECONDS = 0.02
# Sentences that the agent says until a caller interrupts it: long ones that nano has learnt.
_LONG = {
    "restaurant": "Hello, this is {name}. What can I get you?",
    "teacher": "Hi, I am {name}, your teacher. What shall we learn?",
}
_WORD_SECONDS = 0.5  # more than the words of a sentence take on average
_HOLD_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
_ESPEAK = threading.Lock()  # the library has one instance, for one thread at a time


@dataclass
class Scene:
    """One call: the agent, the caller's audio, and actions by frame index.

    Attributes:
        seed: Seed of the call and of its sampling.
        voice: The agent's voice.
        character: The agent's role and name.
        actions: What is done, by frame index.
        speeches: What the agent was told to say.
    """

    seed: int
    voice: str = field(init=False)
    character: script.Character = field(init=False)
    actions: dict[int, Callable[[Session], object]] = field(default_factory=dict)
    speeches: list[Speech] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng([77, self.seed])
        self.character = script.sample_character(self.random)
        self.voice = list(AGENT_VOICES)[self.seed % 2]
        self._parts: list[tuple[float, Pcm]] = []

    def say(self, at: float, text: str, when: str = "pause") -> None:
        """Have the agent say a text from a time on."""
        self.do(at, lambda session: self.speeches.append(session.say(text, when=when)))  # type: ignore[arg-type]

    def do(self, at: float, action: Callable[[Session], object]) -> None:
        """Call ``action`` before the first frame that starts at or after a time."""
        self.actions[frame_at(at)] = action

    def ask(self, at: float, intent: str) -> float:
        """Have the caller ask for an intent; returns the end of the question in seconds."""
        text = str(self.random.choice(wordings.wordings(intent, held_out=True)))
        return self.tell(at, text)

    def tell(self, at: float, text: str) -> float:
        """Have the caller speak a text; returns its end in seconds."""
        manners = held_out_voices()
        with _ESPEAK:
            turn = speak_turn(text, manners[self.seed % len(manners)], self.random, False)
        self._parts.append((at, turn.pcm))
        return at + len(turn.pcm) / SAMPLE_RATE

    def run(self, engine: Engine, seconds: float) -> Conversation:
        """Run the call."""
        pcm = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        for at, words in self._parts:
            add_at(words, pcm, int(at * SAMPLE_RATE))
        if self._parts:
            background = Background.sample(self.random, held_out=True)
            pcm = background.over(pcm, rms(self._parts[0][1]), self.random)
        persona = Persona(self.voice, self.character.prompt)
        sampling = SamplingParams(seed=self.seed)
        return engine.converse(persona, pcm, sampling, actions=self.actions)

    def intent(self) -> str:
        """A random intent of the role, not a greeting."""
        known = script.intents(self.character.role)
        return known[int(self.random.integers(2, len(known)))]

    def answers(self, engine: Engine, talk: Conversation, intent: str, end: float) -> bool:
        """Whether the agent answers this intent within 4.5 s after a time."""
        text = agent_text_between(engine, talk, end, end + 4.5)
        return is_right(self.character, intent, text)


def frame_at(seconds: float) -> int:
    """The first frame that starts at or after a time."""
    return int(np.ceil(round(seconds / FRAME_SECONDS, 6)))


def first_sound(talk: Conversation, at: float) -> float:
    """Seconds from the frame of a time to the first audible hop after it; infinite if none."""
    first = frame_at(at) * FRAME_SAMPLES
    hops = np.flatnonzero(audible(talk.pcm[first:]))
    return float(hops[0]) * _HOP_SECONDS if len(hops) else float("inf")


def audible_hops(talk: Conversation, start: float, end: float) -> int:
    """Audible hops of 20 ms between two times."""
    first, last = (int(time / _HOP_SECONDS) for time in (start, end))
    return int(audible(talk.pcm)[first:last].sum())


def word_starts(talk: Conversation) -> list[int]:
    """The frames in which the agent's words start."""
    return [
        round(word.start / FRAME_SECONDS) for word in words_of(frame.text for frame in talk.frames)
    ]


def sounds(talk: Conversation, frame: int) -> bool:
    """Whether a word whose text starts in a frame is heard in this frame or the next three."""
    start = frame * FRAME_SECONDS
    return audible_hops(talk, start, start + 4 * FRAME_SECONDS) > 0


# S1 and the words behind: a silent caller.


def forced(engine: Engine, seed: int, clarity: bool = True) -> tuple[float, float, int]:
    """STOI, delay of the first sound, and words that the agent adds within 3 s.

    Without ``clarity`` the STOI is NaN, and no reference is synthesised, which takes seconds.
    """
    scene = Scene(seed)
    at = 1.0 + scene.random.uniform(0, 1.0)
    text = scene.character.answer(scene.intent())
    scene.say(at, text)
    words: Pcm | None = None
    seconds = len(text.split()) * _WORD_SECONDS
    if clarity:
        with _ESPEAK:
            words = reference(scene.voice, text).pcm
        seconds = len(words) / SAMPLE_RATE
    end = at + 1.0 + seconds
    talk = scene.run(engine, end + 4.0)
    delay = first_sound(talk, at)
    onset = frame_at(at) * FRAME_SECONDS + delay
    starts = [frame for frame in word_starts(talk) if frame > frame_at(at)]
    behind = len(starts) - len(text.split())
    score = float("nan") if words is None else speech_stoi(talk.pcm, onset, words)
    return score, delay, behind


# S2: a caller who talks over the agent.


@dataclass
class TalkedOver:
    """How a text was spoken under a talking caller.

    Attributes:
        words: Words of the text.
        placed: Words whose text was placed.
        heard: Placed words that sound.
        repeated: Words that were placed twice, because the caller has silenced them.
        counted: Words that the session counts as spoken.
        behind: What the agent says behind the text, at any time.
    """

    words: int
    placed: int
    heard: int
    repeated: int
    counted: int
    behind: str


def talked_over(engine: Engine, seed: int) -> TalkedOver:
    """The agent says a text while the caller tells a story."""
    scene = Scene(seed)
    text = _LONG[scene.character.role].format(name=scene.character.name or "Owen")
    scene.say(1.0, text, when="now")
    story = str(scene.random.choice(wordings.stories(held_out=True)))
    end = scene.tell(1.0 + scene.random.uniform(0.4, 1.0), story)
    talk = scene.run(engine, end + 6.0)
    said = [
        (word.word, round(word.start / FRAME_SECONDS))
        for word in words_of(frame.text for frame in talk.frames)
        if round(word.start / FRAME_SECONDS) > frame_at(1.0)
    ]
    placed = heard = repeated = 0
    for word in text.split():
        # A word that the caller has silenced is said again.
        attempts = [frame for each, frame in said[:2] if each.startswith(word)]
        del said[: len(attempts)]
        placed += len(attempts) > 0
        repeated += len(attempts) > 1
        heard += any(sounds(talk, frame) for frame in attempts)
    behind = " ".join(word for word, _ in said)
    spoken = scene.speeches[0].spoken
    return TalkedOver(len(text.split()), placed, heard, repeated, spoken, behind)


# S3: a caller who interrupts, and hush.


@dataclass
class Interruption:
    """What happened after an interruption; times in seconds."""

    quiet_after_hush: float
    quiet_after_caller: float
    answered: bool
    spoken: int
    heard: int


def interrupted(engine: Engine, seed: int) -> Interruption:
    """The agent is hushed 0.24 s after the caller has started a question."""
    scene = Scene(seed)
    text = _LONG[scene.character.role].format(name=scene.character.name or "Owen")
    scene.say(1.0, text)
    begins = 1.0 + scene.random.uniform(0.9, 1.3)
    intent = scene.intent()
    end = scene.ask(begins, intent)
    scene.do(begins + 0.24, lambda session: session.hush())
    talk = scene.run(engine, end + 5.0)
    hushed = frame_at(begins + 0.24) * FRAME_SECONDS
    speaking = audible(talk.pcm)
    first = int(hushed / _HOP_SECONDS)
    quiet = next(
        (hop for hop in range(first, len(speaking)) if not speaking[hop : hop + 10].any()),
        len(speaking),
    )
    quiet_at = quiet * _HOP_SECONDS
    # Words heard by time: those that start in the same sentence of the synthesiser before the
    # agent becomes quiet.
    onset = frame_at(1.0) * FRAME_SECONDS + first_sound(talk, 1.0)
    with _ESPEAK:
        onsets = [at for _, at in reference(scene.voice, text).words]
    heard = sum(onset + each - onsets[0] < quiet_at - 0.06 for each in onsets)
    return Interruption(
        quiet_after_hush=quiet_at - hushed,
        quiet_after_caller=quiet_at - begins,
        answered=scene.answers(engine, talk, intent, end - 0.2),
        spoken=scene.speeches[0].spoken,
        heard=heard,
    )


# H1: hold.


def held(engine: Engine, seed: int) -> tuple[int, bool]:
    """Audible hops during a hold, and whether a text said after it is spoken in full."""
    scene = Scene(seed)
    seconds = _HOLD_SECONDS[seed % len(_HOLD_SECONDS)]
    intent = scene.intent()
    end = scene.ask(1.0, intent)
    scene.do(1.2, lambda session: session.hold(30.0))
    said_at = end + seconds
    text = scene.character.answer(intent)

    def say(session: Session) -> None:
        scene.speeches.append(session.say(text))
        session.release()

    scene.do(said_at, say)
    talk = scene.run(engine, said_at + 6.0)
    speech = scene.speeches[0]
    hops = audible_hops(talk, 1.2 + 2 * FRAME_SECONDS, frame_at(said_at) * FRAME_SECONDS)
    return hops, speech.state == "said" and speech.spoken == speech.words


def released(engine: Engine, seed: int) -> bool:
    """Whether the agent answers by itself after a hold that ends 1 s after the question."""
    scene = Scene(seed)
    intent = scene.intent()
    end = scene.ask(1.0, intent)
    scene.do(1.2, lambda session: session.hold(30.0))
    scene.do(end + 1.0, Session.release)
    talk = scene.run(engine, end + 7.0)
    return scene.answers(engine, talk, intent, end - 0.2)
