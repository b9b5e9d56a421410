"""A caller for nano, the small model in the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import FRAME_SAMPLES

QUESTION = Path(__file__).parents[1] / "bots" / "data" / "what_is_on_the_menu.flac"


def question_and_pause(frames: int) -> npt.NDArray[np.float32]:
    """A question after 0.3 s, then silence in which the agent answers: float32 [frames, 1920]."""
    pcm = np.zeros(frames * FRAME_SAMPLES, dtype=np.float32)
    question = read_audio(QUESTION)
    pcm[4 * FRAME_SAMPLES : 4 * FRAME_SAMPLES + len(question)] = question
    return pcm.reshape(frames, FRAME_SAMPLES)
