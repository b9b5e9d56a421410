"""The tracks of a dialogue: tokens by frame, and clips written into them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipecat_personaplex.constants import (
    AGENT_CODES,
    STREAMS,
    TEXT,
    TEXT_EPAD,
    TEXT_PAD,
    USER_CODES,
)
from pipecat_personaplex.engine.prompt import Tokenizer
from training.nano.pool import AgentClip, Caller, UserClip

CLIP_LEAD = 3
"""Frames of background before a caller's words that are copied from the clip."""

TEXT_LEAD = 1
"""Frames by which the text of a word precedes its sound."""


@dataclass
class Track:
    """A dialogue under construction.

    Attributes:
        frames: [T, 17], the tokens of each frame.
        audible: [T], whether the agent speaks in the frame.
        word_ends: [T], index of the caller's word that has just ended; -1 for none.
        deciding: [T], whether the caller speaks or waits for an answer.
        word_weights: [T], factor on the weight of the text loss.
        new: [T], whether the agent says words that the script does not fix.
    """

    frames: Tensor
    audible: Tensor
    word_ends: Tensor
    deciding: Tensor
    word_weights: Tensor
    new: Tensor

    @classmethod
    def silent(cls, length: int, silence: Tensor) -> Track:
        """A track in which nobody speaks.

        Args:
            length: Its frames.
            silence: The 8 codes of silence.
        """
        frames = torch.empty(length, STREAMS, dtype=torch.int64)
        frames[:, TEXT] = TEXT_PAD
        frames[:, AGENT_CODES] = frames[:, USER_CODES] = silence
        no = torch.zeros(length, dtype=torch.bool)
        ends = torch.full((length,), -1)
        return cls(frames, no.clone(), ends, no.clone(), torch.ones(length), no)


def copied_frames(clip: AgentClip) -> Tensor:
    """Whether each frame of a sentence is of a word that is copied from the prompt, [F]."""
    ends = [*clip.onsets[1:], len(clip.codes)]
    frames = torch.zeros(len(clip.codes), dtype=torch.bool)
    for word in clip.copied:
        frames[clip.onsets[word] : ends[word]] = True
    return frames


def word_tokens(clip: AgentClip, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The text stream of a sentence, one token a frame, and which tokens the prompt tells.

    These are the tokens of copied words, and the one after a word where the value goes on.

    The pieces of a word start a frame before its onset, or later if the pieces of the previous word
    extend beyond that; those of the first word at its onset. So the model knows a word before it
    must sound. EPAD precedes each word that follows padding.
    """
    tokens = [TEXT_PAD] * len(clip.codes)
    copied = [False] * len(tokens)
    free = 0
    words = zip(clip.text.split(), clip.onsets, strict=True)
    for index, (word, onset) in enumerate(words):
        start = max(onset - TEXT_LEAD, free)
        if start > free:
            tokens[start - 1] = TEXT_EPAD
        for piece in tokenizer.encode(word):
            if start < len(tokens):
                tokens[start] = piece
                copied[start] = index in clip.copied
            start += 1
        if start < len(tokens) and {index, index + 1} <= set(clip.copied):
            copied[start] = True
        free = start
    return tokens, copied


def change_pace(clip: UserClip, pace: float) -> UserClip:
    """Change the pace of a caller's words by leaving frames out or repeating them.

    Args:
        clip: The turn.
        pace: Factor on the speed: 1 changes nothing, 1.1 is 10 % faster.
    """
    words = clip.end - clip.start
    selected = (np.arange(round(words / pace)) * pace).astype(int).clip(max=words - 1) + clip.start
    frames = np.concatenate((np.arange(clip.start), selected, np.arange(clip.end, len(clip.codes))))

    def moved(frame: int) -> int:
        return int(np.searchsorted(frames, frame))

    return UserClip(
        clip.intent,
        clip.codes[torch.from_numpy(frames)],
        clip.start,
        clip.start + len(selected),
        [(moved(frame), word) for frame, word in clip.word_ends],
        None if clip.story_end is None else moved(clip.story_end),
    )


def background(caller: Caller, length: int, random: np.random.Generator) -> Tensor:
    """A caller's background without words, [length, 8]."""
    source = caller.background.long()
    parts: list[Tensor] = []
    while sum(map(len, parts)) < length:
        start = int(random.integers(8, len(source) // 2))
        parts.append(source[start:])
    return torch.cat(parts)[:length]


def _write(frames: Tensor, codes: Tensor, at: int, streams: slice, not_before: int) -> None:
    start, end = max(at, not_before), min(len(frames), at + len(codes))
    if end > start:
        frames[start:end, streams] = codes[start - at : end - at].long()


def write_question(track: Track, clip: UserClip, at: int) -> None:
    """Write a caller's clip so that its words start in frame ``at``."""
    begin = at - clip.start
    _write(track.frames, clip.codes, begin, USER_CODES, max(0, at - CLIP_LEAD))
    for frame, word in clip.word_ends:
        if 0 <= (index := begin + frame) < len(track.frames):
            track.word_ends[index] = word
