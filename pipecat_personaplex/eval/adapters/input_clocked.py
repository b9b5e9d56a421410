"""An agent for InteractionGym: clocked by its input, in simulated time."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from pipecat_personaplex.audio import float_to_pcm16, is_audible, pcm16_to_float
from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.constants import FRAME_SECONDS, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.eval.adapters.stepped_call import SteppedCall
from pipecat_personaplex.eval.plugins import require_package
from pipecat_personaplex.interface import EngineLike, SessionFrame

_CHUNK_MS = round(FRAME_SECONDS * 1e3)
_HANGOVER_FRAMES = 4  # silence of less than this is inside an utterance
_AUDIO = "user.audio"
_INSTALL = "install InteractionGym from https://github.com/williamLyh/InteractionGym"


class InputClockedAgent:
    """PersonaPlex as an agent of InteractionGym: 80 ms in, 80 ms out, at every step.

    What it says is streamed in chunks; an utterance is one segment, which ends after 0.32 s of
    silence. Its audio has the time of the input that it was computed with, plus one step.

    Attributes:
        spec: The ``AgentSpec`` for ``Env``.

    Raises:
        ConfigError: InteractionGym is not installed.

    Example::

        agent = InputClockedAgent(engine, Persona("NATF2", "You enjoy having a good conversation."))
        env = Env(nodes, agent.spec)
        frames = agent.act(t, observation)
    """

    def __init__(
        self, engine: EngineLike, persona: Persona, sampling: SamplingParams | None = None
    ):
        option = "InputClockedAgent"
        self._core: Any = require_package(option, "interaction_gym.core", _INSTALL)
        self._audio: Any = require_package(option, "interaction_gym.audio", _INSTALL)
        self.spec = self._core.AgentSpec(chunk_ms=_CHUNK_MS, audio=_AUDIO, sr=SAMPLE_RATE)
        self._persona = persona
        self._call = SteppedCall(engine, persona, sampling)
        self._segment = 0
        self._first = True
        self._silent = _HANGOVER_FRAMES + 1  # frames since the last sound

    def describe(self) -> dict[str, Any]:
        """For the trajectory's metadata."""
        return {"name": "PersonaPlex", "kind": "audio", "voice": self._persona.voice}

    def act(self, t: int, obs: list[Any]) -> list[Any]:
        """Advance by the audio of this step.

        Args:
            t: Simulated time in ms.
            obs: Frames of the environment; those on ``user.audio`` are heard.

        Returns:
            Frames with a chunk of the agent's speech; empty while it is silent.

        Raises:
            ConfigError: The audio has another sample rate than ``spec.sr``.
        """
        frames: list[SessionFrame] = []
        for each in obs:
            if each.stream == _AUDIO:
                if each.data.sr != SAMPLE_RATE:
                    raise ConfigError(f"the audio must have {SAMPLE_RATE} Hz: use agent.spec")
                samples = np.asarray(each.data.samples, np.int16)
                frames += self._call.push(pcm16_to_float(samples))
        chunks = (self._chunk(t + number * _CHUNK_MS, f) for number, f in enumerate(frames))
        return [self._core.Frame(self.spec.out, chunk.t0, chunk) for chunk in chunks if chunk]

    def close(self) -> None:
        """End the call."""
        self._call.close()

    def _chunk(self, t: int, frame: SessionFrame) -> Any:
        """The chunk of a frame; None in silence."""
        sound = is_audible(frame.pcm) or bool(frame.text)
        self._silent = 0 if sound else self._silent + 1
        if self._silent > _HANGOVER_FRAMES:
            return None
        first, last = self._first, self._silent == _HANGOVER_FRAMES
        name = f"a{self._segment}"
        self._segment, self._first = self._segment + last, last
        audio = self._audio.Audio(array("h", float_to_pcm16(frame.pcm).tolist()), SAMPLE_RATE)
        return self._core.Chunk(name, t, _CHUNK_MS, audio, frame.text, first=first, last=last)
