"""Composes dialogues of two tracks, frame by frame, from encoded clips.

Waiting times, pauses and interruptions are random. The model is to learn these rules from them: an
answer starts 320 to 480 ms after the caller's last word, seldom later, and never in a pause inside
a sentence; an interrupted agent falls silent after 240 ms; without a question the agent is silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    CODEBOOKS,
    SILENCE_FRAMES,
    STREAMS,
    TEXT,
    TEXT_EPAD,
    TEXT_PAD,
    USER_CODES,
)
from pipecat_personaplex.engine.prompt import Tokenizer, text_prompt_tokens
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.delay_pattern import prompt_columns
from training.nano import script, wordings
from training.nano.given import sample_given
from training.nano.pool import AgentClip, Caller, Pool, UserClip
from training.nano.tracks import (
    CLIP_LEAD,
    Track,
    background,
    change_pace,
    copied_frames,
    word_tokens,
    write_question,
)

ANSWER_FRAMES = (4, 5, 6)
_ANSWER_SHARES = (0.45, 0.4, 0.15)
# Some answers are late, so that an agent that has missed its moment still answers. Pauses inside a
# turn last at most 0.9 s; after more silence than that, the turn has certainly ended.
_LATE_SHARE = 0.12
LATE_FRAMES = (7, 16)
YIELD_FRAMES = 3
# From the end of a caller's story to the agent's "uh-huh"; the caller continues to speak.
_BACKCHANNEL_FRAMES = 2
_BARGE_IN_SHARE = 0.22
_OTHER_ROLE_SHARE = 0.12
# Short questions and copying a name from the prompt are learnt last, so they are more frequent.
_SHARED_SHARE = 0.3
_LONG_SILENCE_SHARE = 0.1
# Share of the caller's turns with a changed pace, and the range of paces.
_OTHER_PACE_SHARE = 0.5
_PACES = (0.85, 1.15)
# Frames of silence between two clips of a sequence without answers.
_LISTENING_GAP = (3, 10)
# Weights of the losses; all other targets after the prompt have weight 1.
_QUIET = 0.15
_TEXT_PAD = 0.25
# With 0.1, the agent started to speak two or three times in five minutes of silence.
_SILENT_PAD = 0.5
# Weight of padding while a caller speaks and until the answer. Relative to the weight 1 of an
# answer's onset, it sets how certain the agent must be that the caller's turn is over.
_DECIDING = 0.4
_AFTER_SPEECH = 6
COPIED_WEIGHT = 6.0
"""Weight of the few tokens that only the prompt tells."""
NEW_WORDS = 2.0
"""Weight of the audio of words that the script does not fix."""
# Share of turns in which the agent says a sentence that it was given, without a question.
_GIVEN_SHARE = 0.25
# Weight of its words.
_GIVEN_WEIGHT = 0.1
# Frames of silence between two of them where there are no other turns.
_GIVEN_GAP = (3, 12)
# Share of a restaurant's questions that ask for facts of the prompt, or what is confused with them.
_ABOUT_FOOD_SHARE = 0.45
_ABOUT_FOOD = [
    *("menu", "order_classic", "order_spicy", "in_classic", "in_spicy"),
    *("price_classic", "price_classic", "price_spicy", "price_spicy"),
    *("hours", "hours", "location", "location", "drinks", "drinks", "wait", "wait", "card"),
]
# Shares of examples without a prompt, and with a prompt far back in time.
_PROMPTLESS_SHARE = 0.08
_LEAP_SHARE = 0.3


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        columns: Input tokens, [T, 17].
        positions: Positions of the inputs, [T].
        targets: Tokens that each input predicts, text and the agent's codes, [T, 9].
        text_weights: Weight of each text target, [T].
        audio_weights: Weight of each frame's audio targets, [T]; ``NEW_WORDS`` where the agent says
            words that the script does not fix.
        word_ends: Index of the caller's word that has just ended in each frame, [T]; -1 for none.
    """

    columns: Tensor
    positions: Tensor
    targets: Tensor
    text_weights: Tensor
    audio_weights: Tensor
    word_ends: Tensor


class DialogueWriter:
    """Composes random dialogues.

    Args:
        pool: The clips.
        tokenizer: The model's tokenizer.
        config: The model's architecture and special codes.
        callers: Who calls; by default the pool's callers for training.
    """

    def __init__(
        self,
        pool: Pool,
        tokenizer: Tokenizer,
        config: ModelConfig,
        callers: list[Caller] | None = None,
    ):
        self._pool, self._tokenizer, self._config = pool, tokenizer, config
        self._callers = pool.callers if callers is None else callers
        self._silence = torch.tensor(config.silence_codes)
        self._texts: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def prompt(self, voice: str, text: str, random: np.random.Generator) -> Tensor:
        """The prompt frames of a persona, [P, 17], equal to the engine's."""
        samples = self._pool.voices[voice]
        sample = samples[int(random.integers(len(samples)))]
        tokens = text_prompt_tokens(text, self._tokenizer)
        count = len(sample) + len(tokens) + 2 * SILENCE_FRAMES
        frames = torch.empty(count, STREAMS, dtype=torch.int64)
        frames[:, TEXT] = TEXT_PAD
        start = len(sample) + SILENCE_FRAMES
        frames[start : start + len(tokens), TEXT] = torch.tensor(tokens)
        frames[:, AGENT_CODES] = self._silence
        frames[: len(sample), AGENT_CODES] = sample.long()
        frames[:, USER_CODES] = torch.tensor(self._config.sine_codes)
        return frames

    def talk(
        self, length: int, voice: str, character: script.Character, random: np.random.Generator
    ) -> Track:
        """Compose ``length`` frames of a conversation."""
        caller = self._callers[int(random.integers(len(self._callers)))]
        track = Track.silent(length, self._silence)
        track.frames[:, USER_CODES] = background(caller, length, random)
        at = _gap(random)
        interrupts = False
        while at < length:
            if not interrupts and random.random() < _GIVEN_SHARE:
                at = self._write_given(track, voice, character, at, random) + _gap(random)
                continue
            question = _at_some_pace(self._sample_question(caller, character, random), random)
            words = question.end - question.start
            if question.story_end is not None:
                listening = self._pool.agent[voice][script.BACKCHANNEL]
                story_end = at - question.start + question.story_end
                self._write_answer(track, voice, listening, story_end + _BACKCHANNEL_FRAMES, length)
            write_question(track, question, at)
            begin = at + words + _wait(random)
            track.deciding[at:begin] = True
            text = character.answer(question.intent)
            clip = self._pool.agent[voice][text]
            spoken = len(clip.codes)
            interrupts = random.random() < _BARGE_IN_SHARE
            if interrupts:
                at = begin + int(random.integers(5, max(6, spoken - 6)))
                stop_before = at + YIELD_FRAMES
            else:
                at = begin + spoken + _gap(random)
                stop_before = length
            self._write_answer(track, voice, clip, begin, stop_before)
        return track

    def _sample_question(
        self, caller: Caller, character: script.Character, random: np.random.Generator
    ) -> UserClip:
        own = script.intents(character.role)
        kind = random.random()
        if kind < _SHARED_SHARE:
            wanted = [*wordings.SHARED, "hello", "abilities", "name", "name", "name"]
        elif character.role == "restaurant" and kind < _SHARED_SHARE + _ABOUT_FOOD_SHARE:
            wanted = _ABOUT_FOOD
        else:
            other = kind > 1 - _OTHER_ROLE_SHARE
            wanted = [intent for intent in wordings.INTENTS if (intent in own) != other]
        # A caller has turns of some intents only.
        intents = [intent for intent in wanted if intent in caller.clips] or list(caller.clips)
        clips = caller.clips[intents[int(random.integers(len(intents)))]]
        return clips[int(random.integers(len(clips)))]

    def listening(self, length: int, random: np.random.Generator) -> Example:
        """Compose a training sequence in which one caller after the other speaks, without answers.

        Only the loss of the callers' words counts. It has more than twice the words of a dialogue.
        """
        track = Track.silent(length, self._silence)
        at = 0
        while at < length:
            caller = self._callers[int(random.integers(len(self._callers)))]
            clips = [clip for clips in caller.clips.values() for clip in clips]
            clip = _at_some_pace(clips[int(random.integers(len(clips)))], random)
            at += CLIP_LEAD
            write_question(track, clip, at)
            at += clip.end - clip.start + int(random.integers(*_LISTENING_GAP))
        positions = torch.arange(length) + int(random.integers(0, 500))
        nothing = torch.zeros(length)
        targets = track.frames[:, : 1 + CODEBOOKS].clone()
        columns = prompt_columns(track.frames, self._config)[:length]
        return Example(columns, positions, targets, nothing, nothing, track.word_ends)

    def speak(
        self, length: int, voice: str, character: script.Character, random: np.random.Generator
    ) -> Track:
        """Compose ``length`` frames in which the agent says one given sentence after the other."""
        track = Track.silent(length, self._silence)
        caller = self._callers[int(random.integers(len(self._callers)))]
        track.frames[:, USER_CODES] = background(caller, length, random)
        at = 0
        while at < length:
            at += int(random.integers(*_GIVEN_GAP))
            at = self._write_given(track, voice, character, at, random)
        return track

    def _write_given(
        self,
        track: Track,
        voice: str,
        character: script.Character,
        at: int,
        random: np.random.Generator,
    ) -> int:
        """Write a sentence that answers no question; return the first frame after it.

        In a call, such words are forced. The model learns to pronounce them and when a word starts,
        but hardly to predict them, and not to begin such a sentence.
        """
        clip = sample_given(self._pool, voice, character, random)
        end = at + len(clip.codes)
        self._write_answer(track, voice, clip, at, end)
        track.new[at:end] = True
        text = track.frames[at:end, TEXT]
        word = (text != TEXT_EPAD) & (text != TEXT_PAD)
        track.word_weights[at:end] = torch.where(word, _GIVEN_WEIGHT, 1.0)
        track.word_weights[at - 1 : at] = 0.0
        return end

    def _write_answer(
        self, track: Track, voice: str, clip: AgentClip, begin: int, stop_before: int
    ) -> None:
        end = min(begin + len(clip.codes), stop_before, len(track.frames))
        count = end - begin
        if count <= 0:
            return
        text, weights = self._text(voice, clip)
        track.frames[begin:end, AGENT_CODES] = clip.codes[:count].long()
        track.frames[begin:end, TEXT] = text[:count]
        track.word_weights[begin:end] = weights[:count]
        track.frames[begin - 1, TEXT] = TEXT_EPAD
        track.audible[begin:end] = True
        track.new[begin:end] = copied_frames(clip)[:count]

    def _text(self, voice: str, clip: AgentClip) -> tuple[Tensor, Tensor]:
        """The text stream of a clip, and the weights of its tokens; kept for the script's lines."""
        line = clip is self._pool.agent[voice].get(clip.text)
        found = self._texts.get((voice, clip.text)) if line else None
        if found is None:
            words, copied = word_tokens(clip, self._tokenizer)
            tokens = torch.tensor(words)
            # Whether a value ends, as in "ten dollars", or goes on, is a choice between a word and
            # padding. Were padding's weight less, the model would end each value too early.
            told = torch.where(tokens == TEXT_PAD, COPIED_WEIGHT / _TEXT_PAD, COPIED_WEIGHT)
            found = tokens, torch.where(torch.tensor(copied), told, 1.0)
            if line:
                self._texts[voice, clip.text] = found
        return found

    def example(
        self, length: int, random: np.random.Generator, *, speaking: bool = False
    ) -> Example:
        """Compose a training sequence of ``length`` frames.

        Most start with their prompt. In some, positions leap after the prompt, as late in a long
        call. Some have no prompt, as when it has left the attention window. With ``speaking``, the
        agent says given sentences, and the caller is silent.
        """
        voices = list(self._pool.voices)
        voice = voices[int(random.integers(len(voices)))]
        character = script.sample_character(random)
        kind = random.random()
        if kind < _PROMPTLESS_SHARE:
            prompt = torch.empty(0, STREAMS, dtype=torch.int64)
            cut = int(random.integers(40, 120))
        else:
            prompt = self.prompt(voice, character.prompt, random)
            cut = 0
        live = len(prompt)
        # One frame more than inputs: each input predicts the next frame.
        compose = self.speak if speaking else self.talk
        track = compose(cut + length + 1 - live, voice, character, random)
        columns = prompt_columns(torch.cat((prompt, track.frames)), self._config)
        positions = torch.arange(length) + cut
        if not live:
            positions += int(random.integers(500, 3000))
        elif kind < _PROMPTLESS_SHARE + _LEAP_SHARE:
            positions[live:] += int(random.integers(0, self._config.lm.window - length))
        before = torch.zeros(live, dtype=torch.bool)
        columns = columns[cut : cut + length + 1]
        audible = torch.cat((before, track.audible))[cut:]
        word_ends = torch.cat((torch.full((live,), -1), track.word_ends))[cut : cut + length]
        deciding = torch.cat((before, track.deciding))[cut:]
        text_weights, audio_weights = _weights(columns[1:, TEXT], audible, deciding)
        new = torch.cat((before, track.new))[cut:][1:]
        audio_weights[new] = NEW_WORDS
        words = torch.cat((torch.ones(live), track.word_weights))[cut:][1:]
        text_weights *= words
        given = max(live - 1, 0)
        text_weights[:given] = 0
        audio_weights[:given] = 0
        return Example(
            columns[:-1].clone(),
            positions,
            columns[1:, : 1 + CODEBOOKS].clone(),
            text_weights,
            audio_weights,
            word_ends,
        )


def _weights(text: Tensor, audible: Tensor, deciding: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the losses of targets 1..T, text and audio, each [T].

    Args:
        text: Text targets, [T].
        audible: Whether the agent speaks in frames 0..T, [T + 1].
        deciding: Whether the caller speaks or waits for an answer in frames 0..T, [T + 1].
    """
    # Frames right after speech have full weight too: a column has the acoustic codes of the frame
    # before it, and these frames determine whether the agent falls silent.
    near = audible.clone()
    for back in range(1, _AFTER_SPEECH):
        near[back:] |= audible[:-back]
    near = near[1:]
    audio = torch.where(near, 1.0, _QUIET)
    padding = torch.where(near, _TEXT_PAD, _SILENT_PAD)
    padding = torch.where(deciding[1:] & ~audible[1:], _DECIDING, padding)
    return torch.where(text == TEXT_PAD, padding, 1.0), audio


def _wait(random: np.random.Generator) -> int:
    """Sample the number of frames from the caller's last word to the agent's first."""
    if random.random() < _LATE_SHARE:
        return int(random.integers(*LATE_FRAMES, endpoint=True))
    return int(random.choice(ANSWER_FRAMES, p=_ANSWER_SHARES))


def _gap(random: np.random.Generator) -> int:
    """Sample the number of frames from the agent's last word to the caller's next one."""
    if random.random() < _LONG_SILENCE_SHARE:
        return int(random.integers(60, 220))
    return int(random.integers(2, 30))


def _at_some_pace(clip: UserClip, random: np.random.Generator) -> UserClip:
    if random.random() < _OTHER_PACE_SHARE:
        return change_pace(clip, float(random.uniform(*_PACES)))
    return clip
