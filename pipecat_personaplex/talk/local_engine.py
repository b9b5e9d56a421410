"""The model of a page, with what the page needs besides calls: prompt sizes, previews, voices."""

from __future__ import annotations

import io
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from pipecat_personaplex.audio import Pcm, float_to_pcm16
from pipecat_personaplex.checkpoint.voices import VoiceLibrary
from pipecat_personaplex.config import EngineConfig, Persona, SamplingParams
from pipecat_personaplex.constants import (
    FRAME_SAMPLES,
    MAX_PROMPT_FRAMES,
    SAMPLE_RATE,
    SILENCE_FRAMES,
)
from pipecat_personaplex.engine.engine import Engine
from pipecat_personaplex.engine.loading import load_parts
from pipecat_personaplex.engine.prompt import text_prompt_tokens
from pipecat_personaplex.errors import InvalidAudio, LimitReached, VoiceError
from pipecat_personaplex.interface import SessionLike

MAX_VOICE_UPLOAD = 16 << 20
"""Largest recording of a voice that a page may send, in bytes."""

_MAX_ADDED_VOICES = 32
_PREVIEW_TEXT = "Hello! How can I help you today?"
_PREVIEW_FRAMES = 60  # 4.8 s, longer than any voice needs for the text
_PREVIEW_MARGIN = 1_200  # samples, 50 ms, at both ends of the speech
_QUIET = 0.01


@dataclass(frozen=True)
class PromptSize:
    """How much of the model's window a persona takes.

    Attributes:
        text: Tokens of the text prompt; each is a frame of 80 ms.
        voice: Frames of the voice.
        frames: All frames of the prompt, silences included.
        limit: The largest number of frames that the model accepts.
        window: Frames that the model remembers, prompt and call together.
    """

    text: int
    voice: int
    frames: int
    limit: int
    window: int


class LocalEngine:
    """A model in this process.

    Its methods compute for up to seconds: call them on a thread of their own.

    Args:
        model: A model name without ``auto``, as ``Engine.load`` takes it.
        config: How the engine runs.
        progress: Whether to draw progress bars on stderr while the model loads.

    Attributes:
        engine: The engine; start it before a call.

    Raises:
        UserError: The model or the device cannot be used.

    Example::

        local = LocalEngine("nano", EngineConfig(device="cpu"))
        with local.engine:
            wav = local.preview("NATF2")
    """

    def __init__(self, model: str, config: EngineConfig, *, progress: bool = False):
        checkpoint, voices, config = load_parts(model, config, progress=progress)
        self.engine = Engine(checkpoint, voices, config)
        self._voices: VoiceLibrary = voices
        self._added: set[str] = set()
        self._previews: dict[str, tuple[str, bytes]] = {}  # digest and WAV, by the voice's name
        self._one_preview = threading.Lock()
        # A recording takes hundreds of megabytes and seconds of computation.
        self._one_recording = threading.Lock()

    def prompt_size(self, persona: Persona) -> PromptSize:
        """Count the prompt's frames without computing anything.

        Raises:
            VoiceNotFound: There is no such voice.
        """
        checkpoint = self.engine.checkpoint
        text = len(text_prompt_tokens(persona.text_prompt, checkpoint.tokenizer))
        voice = self._voices.get(persona.voice).frames
        window = checkpoint.config.lm.window
        frames = voice + text + 2 * SILENCE_FRAMES
        return PromptSize(text, voice, frames, max(window, MAX_PROMPT_FRAMES), window)

    def preview(self, voice: str) -> bytes:
        """A sentence in this voice, as a WAV file. It is synthesised once and then stored.

        Raises:
            EngineFull: Every slot is taken.
            VoiceNotFound: There is no such voice.
        """
        digest = self._voices.get(voice).digest
        with self._one_preview:
            known, wav = self._previews.get(voice, ("", b""))
            if known != digest:  # the voice may have been replaced
                wav = _wav(self._speak(voice))
                self._previews[voice] = digest, wav
            return wav

    def _speak(self, voice: str) -> Pcm:
        def say(session: SessionLike) -> None:
            session.say(_PREVIEW_TEXT, when="now")

        silence = np.zeros(_PREVIEW_FRAMES * FRAME_SAMPLES, dtype=np.float32)
        conversation = self.engine.converse(
            Persona(voice), silence, SamplingParams(), actions={0: say}
        )
        pcm = np.concatenate([frame.pcm for frame in conversation.frames])
        loud = np.flatnonzero(np.abs(pcm) > _QUIET)
        if not len(loud):
            return pcm
        return pcm[max(0, loud[0] - _PREVIEW_MARGIN) : loud[-1] + _PREVIEW_MARGIN]

    def add_voice(self, name: str, recording: bytes, suffix: str) -> None:
        """Add a voice from a recording of one speaker, or from a voice file.

        Args:
            name: Its name; an added voice of the same name is replaced.
            recording: The content of the file.
            suffix: The file's suffix, such as ``.wav``, which tells its format.

        Raises:
            LimitReached: The name belongs to the model, or there are too many added voices.
            InvalidAudio: The recording cannot be read or used.
            VoiceError: The voice file cannot be read or was made for another model.
        """
        if name in self.engine.voices and name not in self._added:
            raise LimitReached(f"the model has a voice {name!r}; choose another name")
        if name not in self._added and len(self._added) >= _MAX_ADDED_VOICES:
            raise LimitReached(f"{_MAX_ADDED_VOICES} voices were added already; restart for more")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}{suffix}"
            path.write_bytes(recording)
            try:
                with self._one_recording:
                    self.engine.add_voice(name, path)
            except (InvalidAudio, VoiceError) as error:
                # The path means nothing to the person at the page.
                raise type(error)(str(error).replace(str(path), path.name)) from None
        self._added.add(name)


def _wav(pcm: Pcm) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, float_to_pcm16(pcm), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    return file.getvalue()
