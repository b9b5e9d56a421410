"""The agent's clips, spoken by a finished checkpoint: training continues without the agent's codec.

The recordings and the agent's own encoder, from which the first clips come, take hours to make, and
a checkpoint does not contain them. But it has learnt those clips by heart. Told to say a sentence,
it gives the same codes again, in the timing that it has learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch

from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SAMPLES
from pipecat_personaplex.engine.engine import Engine
from pipecat_personaplex.errors import PersonaPlexError, SessionFailed
from pipecat_personaplex.interface import MAX_HOLD_SECONDS, SessionFrame
from pipecat_personaplex.session import Session
from training.nano import script
from training.nano.agent_speech import single_texts
from training.nano.clips import share_beginnings, voice_prompts
from training.nano.codec import load_finished
from training.nano.pool import AgentClip, Pool
from training.nano.progress import NotSaid
from training.nano.script import RoleName
from training.nano.voices import AGENT_VOICES

_PROMPTS: dict[RoleName, str] = {
    "restaurant": "You work for Jerusalem Shakshuka which is a restaurant and your name is Owen.",
    "teacher": "You are a friendly teacher and your name is Owen.",
}
_CALLS = 32  # at a time
_TEXTS_EACH = 8  # in a call
_QUIET_FRAMES = 4  # of silence end a sentence
_LONGEST_FRAMES = 250  # that a sentence may take
_SILENCE = np.zeros(FRAME_SAMPLES, np.float32)


@dataclass
class _Call:
    """A call with a caller who says nothing.

    Attributes:
        frames: What the agent has said so far.
    """

    session: Session
    events: SimpleQueue[SessionFrame | PersonaPlexError | None]
    silence: tuple[int, ...]
    frames: list[SessionFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session.push(_SILENCE)  # one frame ahead, so that all calls share each step

    def listen(self) -> SessionFrame:
        """Run one frame of the call."""
        self.session.push(_SILENCE)
        frame = self.events.get()
        if not isinstance(frame, SessionFrame):
            raise frame or SessionFailed("the session was closed")
        self.frames.append(frame)
        return frame

    def say(self, text: str) -> AgentClip:
        """Have the agent say a text; the frames of it.

        Raises:
            NotSaid: It leaves words out, or does not end.
        """
        first, quiet = len(self.frames), 0
        self.session.hold(MAX_HOLD_SECONDS)  # no words of its own
        speech = self.session.say(text)
        while speech.state in ("waiting", "speaking") or quiet < _QUIET_FRAMES:
            silent = tuple(self.listen().agent_codes) == self.silence
            quiet = quiet + 1 if silent else 0
            if len(self.frames) - first > _LONGEST_FRAMES:
                raise NotSaid(f"{text!r} did not end in {_LONGEST_FRAMES} frames")
        spoken = self.frames[first : len(self.frames) - quiet]
        begins = [index for index, frame in enumerate(spoken) if frame.text.startswith(" ")]
        if len(begins) != len(text.split()):
            raise NotSaid(f"of {text!r}, {len(begins)} words were said")
        begin, *later = begins
        codes = [torch.from_numpy(frame.agent_codes) for frame in spoken[begin:]]
        # The text of the first word comes with its sound, of all others a frame before.
        onsets = [0, *(index - begin + 1 for index in later)]
        return AgentClip(text, torch.stack(codes).to(torch.int16), onsets)


def say_all(engine: Engine, persona: Persona, texts: Sequence[str]) -> list[AgentClip]:
    """Have a checkpoint say texts, several calls at a time.

    Args:
        engine: Runs the checkpoint.
        persona: Who says them.
        texts: Of words that its tokenizer knows.

    Raises:
        NotSaid: A text was not said as it is.
    """

    def run(some: Sequence[str]) -> list[AgentClip]:
        events: SimpleQueue[SessionFrame | PersonaPlexError | None] = SimpleQueue()
        session = engine.open_session(
            persona, on_frame=events.put, on_end=events.put, sampling=SamplingParams.greedy()
        )
        call = _Call(session, events, engine.checkpoint.config.silence_codes)
        try:
            return [call.say(text) for text in some]
        finally:
            session.close()

    groups = [texts[start : start + _TEXTS_EACH] for start in range(0, len(texts), _TEXTS_EACH)]
    with ThreadPoolExecutor(engine.config.max_sessions) as pool:
        return [clip for clips in pool.map(run, groups) for clip in clips]


def _script_clips(engine: Engine, voice: str) -> dict[str, AgentClip]:
    """Every line of the script in one voice."""
    lines = script.all_lines()
    clips: dict[str, AgentClip] = {}
    for role, prompt in _PROMPTS.items():
        own = [line.text for line in script.lines(role) if line.text not in clips]
        for clip in say_all(engine, Persona(voice, prompt), own):
            clips[clip.text] = replace(clip, copied=lines[clip.text].copied)
    return share_beginnings(clips)


def _word_clips(engine: Engine, voice: str) -> dict[str, AgentClip]:
    """Every word of the vocabulary by itself, in one voice."""
    texts = single_texts()
    said = say_all(engine, Persona(voice, _PROMPTS["teacher"]), list(texts.values()))
    return dict(zip(texts, said, strict=True))


def rehearse(checkpoint: Path, folder: Path) -> None:
    """Write a pool with the agent's clips, and without callers, from what a checkpoint says.

    Args:
        checkpoint: A folder with a release's files, of the recipe's script.
        folder: Folder of the training states, where ``adopt`` has run.

    Raises:
        FileExistsError: The folder has a pool already.
        NotSaid: The checkpoint does not say a line or a word as it is.
        StateMissing: ``adopt`` has not run.
    """
    if (path := folder / "pool.pt").exists():
        raise FileExistsError(f"{path} exists; delete it first, or use another folder")
    device = torch.device("cpu")
    mimi = load_finished(folder, device)
    options = EngineConfig(device="cpu", max_sessions=_CALLS)
    with Engine.load(checkpoint, options) as engine:
        config = engine.checkpoint.config
        Pool(
            silence=list(config.silence_codes),
            sine=list(config.sine_codes),
            voices=voice_prompts(mimi, device),
            agent={voice: _script_clips(engine, voice) for voice in AGENT_VOICES},
            words={voice: _word_clips(engine, voice) for voice in AGENT_VOICES},
        ).save(folder)
