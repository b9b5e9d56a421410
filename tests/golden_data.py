"""Recorded output of the reference implementation: tiny checkpoint, CPU, float32, greedy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio import pcm16_to_float
from pipecat_personaplex.config import Persona

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "tiny-personaplex"
VOICE_SAMPLE = GOLDEN / "voice_f.wav"

RESTAURANT = Persona(
    voice="NATF2",
    text_prompt=(
        "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen Foster. "
        "Information: There are two shakshuka options: Classic (poached eggs, $9.50) and Spicy "
        "(scrambled eggs with jalapenos, $10.25)."
    ),
)
FRIEND = Persona(voice="NATM1", text_prompt="You enjoy having a good conversation.")


@dataclass(frozen=True)
class GoldenConversation:
    """A conversation of the reference; its ``tokens`` are one frame later than our engine's."""

    persona: Persona
    user_pcm: npt.NDArray[np.float32]
    user_codes: npt.NDArray[np.int64]  # [8, T]
    tokens: npt.NDArray[np.int64]  # [17, T]
    agent_pcm: npt.NDArray[np.float32]
    logits_frames: npt.NDArray[np.int64]
    text_logits: npt.NDArray[np.float32]
    audio_logits: npt.NDArray[np.float32]


@cache
def conversation(name: str) -> GoldenConversation:
    """The conversation named ``"restaurant"`` or ``"friend"``."""
    file, persona = {
        "restaurant": ("converse_voice_pt.npz", RESTAURANT),
        "friend": ("converse_voice_pt_other.npz", FRIEND),
    }[name]
    with np.load(GOLDEN / file) as data:
        return GoldenConversation(
            persona=persona,
            user_pcm=pcm16_to_float(data["user_pcm"]),
            user_codes=data["user_codes"].astype(np.int64),
            tokens=data["tokens"].astype(np.int64),
            agent_pcm=data["agent_pcm"],
            logits_frames=data["logits_frames"],
            text_logits=data["text_logits"],
            audio_logits=data["audio_logits"],
        )
