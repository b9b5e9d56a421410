"""The engine: a loaded model, its slots, and the one thread that steps them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from pipecat_personaplex import process
from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.callbacks import Owner
from pipecat_personaplex.checkpoint.loader import Checkpoint
from pipecat_personaplex.checkpoint.voices import (
    MAX_RECORDING_SECONDS,
    Voice,
    VoiceLibrary,
    encode_voice,
    load_voice_file,
)
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.engine.converse import Actions, Conversation, converse
from pipecat_personaplex.engine.converse_many import (
    ConversationJob,
    FinishedJob,
    Label,
    converse_many,
)
from pipecat_personaplex.engine.history import History, checked_history
from pipecat_personaplex.engine.loading import load_parts
from pipecat_personaplex.engine.model_thread import ModelThread, report_end
from pipecat_personaplex.engine.pending import PendingSession
from pipecat_personaplex.engine.prompt import (
    Prompt,
    build_prompt,
    speech_words,
    text_prompt_tokens,
)
from pipecat_personaplex.engine.prompt_updates import PromptUpdates
from pipecat_personaplex.engine.speech import AgentSpeech
from pipecat_personaplex.engine.step_loop import StepLoop
from pipecat_personaplex.errors import (
    EngineFailed,
    EngineFull,
    EngineStopped,
    PersonaPlexError,
    SessionFailed,
)
from pipecat_personaplex.interface import (
    ALL_FEATURES,
    CallHistory,
    EngineStats,
    Feature,
    SessionFrame,
)
from pipecat_personaplex.models.device import cpu_threads, prepare_device
from pipecat_personaplex.session import Session

# One frame in the running step, and one that lets the session join the next step at once.
_MAX_IN_FLIGHT_FRAMES = 2
_EXIT_SECONDS = 10.0


class Engine:
    """Runs PersonaPlex for many sessions at once.

    Use it as a context manager, or call ``start`` and ``stop``. All methods may be called from
    any thread. Callbacks are called on the model thread and must return at once.

    Example::

        engine = Engine.load("nvidia/personaplex-7b-v1", EngineConfig(max_sessions=8))
        persona = Persona(voice="NATF2", text_prompt="You enjoy having a good conversation.")
        with engine:
            session = engine.open_session(persona, on_frame=play)  # play(frame) must return at once
            for pcm in microphone():  # float32 mono 24 kHz, any length
                session.push(pcm)
            session.close()

    Args:
        checkpoint: A loaded checkpoint.
        voices: The voices that personas may name.
        config: How to run. With ``max_sessions`` 0 there are ``DEFAULT_MAX_SESSIONS``: only
            ``load`` checks how many fit into memory.

    Raises:
        ConfigError: The checkpoint or its device does not support these options.
    """

    def __init__(self, checkpoint: Checkpoint, voices: VoiceLibrary, config: EngineConfig):
        config = replace(config, max_sessions=config.max_sessions or DEFAULT_MAX_SESSIONS)
        self.config = config
        checkpoint = replace(checkpoint, config=checkpoint.config.with_options(config))
        self.checkpoint = checkpoint
        self.device = checkpoint.mimi.frequencies.device
        self._voices = voices
        self._loop = StepLoop(checkpoint, config, self._end)
        self._thread = ModelThread(
            self._prepare_thread, self._run_once, self._end_remaining, self._abandon
        )
        self._lock = threading.Lock()  # guards _open and _arrivals, which all threads use
        self._open: set[Session] = set()
        self._arrivals: deque[PendingSession] = deque()
        self._refused = 0

    @classmethod
    def load(
        cls, model: str | Path, config: EngineConfig | None = None, *, progress: bool = False
    ) -> Engine:
        """Load a checkpoint and its voices.

        Args:
            model: A folder with a release's files, a Hugging Face repo id, ``nano`` (the small
                model in this package), or ``auto`` (the best of these for this machine).
            config: How to run; the defaults of ``EngineConfig`` if not given.
            progress: Whether to draw progress bars of the download and of the loading on stderr.

        Raises:
            CheckpointError: A file is missing, cut off or of the wrong shape.
            ConfigError: ``config.json`` is invalid, the checkpoint or the device does not support
                these options, or the device has too little memory.
            VoiceError: The archive of voices cannot be read.
        """
        return cls(*load_parts(str(model), config or EngineConfig(), progress=progress))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the model thread; does nothing if it runs.

        Raises:
            EngineFailed: The engine has failed before; load another.
            EngineStopped: Called from a callback of an engine that is stopping.
        """
        self._thread.start()
        process.register(self)

    def stop(self) -> None:
        """End every session and the model thread; does nothing if it does not run.

        Called from a callback, it returns at once, and the thread ends after that callback. A
        callback that never returns delays it by five seconds.
        """
        self._thread.stop()

    def stop_at_exit(self) -> None:
        """Stop within seconds, even if a callback blocks: the process is exiting."""
        self._thread.stop(_EXIT_SECONDS)

    def lose_thread(self) -> None:
        """Fail in a process that was forked while the engine ran; no method may wait there."""
        failure = EngineFailed(
            "this process was forked from the one in which the engine runs; load an engine in this "
            "process, or start it with the spawn method"
        )
        self._lock = threading.Lock()
        self._thread.lose_thread(failure)
        for session in self._open:
            session.lose_thread(failure)
        self._open, self._arrivals = set(), deque()

    @property
    def healthy(self) -> bool:
        """False once the device or the model thread has failed; then load another engine."""
        return self._thread.failure is None

    @property
    def features(self) -> frozenset[Feature]:
        """What its sessions can do."""
        return ALL_FEATURES

    @property
    def voices(self) -> list[str]:
        """Names of the voices that a persona may use, sorted."""
        return self._voices.names

    @property
    def max_in_flight_frames(self) -> int:
        """Input frames (80 ms) of a session that may be pushed and not yet computed."""
        return min(_MAX_IN_FLIGHT_FRAMES, self.config.max_queued_frames)

    @property
    def max_sessions(self) -> int:
        """Slots, that is sessions at once."""
        return self.config.max_sessions

    def encode_voice(self, pcm: Pcm, name: str) -> Voice:
        """Make a voice from a recording of one speaker, without adding it to the engine.

        Args:
            pcm: float32 mono 24 kHz. About ten seconds are a good length.
            name: Name of the voice.

        Raises:
            InvalidAudio: The recording is not finite float32 mono, too short, too long or silent.
            EngineFailed: The engine has failed, or this process was forked while it ran.
        """
        self._thread.require_healthy()  # after a fork, the codec would wait for lost threads
        mimi = self.checkpoint.mimi
        return encode_voice(pcm, name, lambda samples: encode_stream(mimi, samples.to(self.device)))

    def add_voice(self, name: str, path: str | Path) -> None:
        """Add a voice from a recording, or from a ``.pt`` or ``.safetensors`` voice file.

        Raises:
            VoiceError: The voice file cannot be read or was made for another model.
            InvalidAudio, EngineFailed: As ``encode_voice``; also if the recording cannot be read.
        """
        path = Path(path)
        if path.suffix.lower() in (".pt", ".safetensors"):
            self._voices.add(load_voice_file(path, name, self.checkpoint.config))
        else:
            recording = read_audio(path, max_seconds=MAX_RECORDING_SECONDS)
            self._voices.add(self.encode_voice(recording, name))

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
        history: CallHistory | None = None,
    ) -> Session:
        """Open a session. Returns at once; the prompt is computed in the background.

        Args:
            persona: Voice and role.
            sampling: How tokens are sampled; the defaults of ``SamplingParams`` if not given.
            on_frame: Called with each frame, in order, on the model thread; must return at once.
            on_ready: Called once, when the prompt is computed and before the first frame.
            on_end: Called once, after the last frame, with the error that ended the session, or
                with None after ``close``.
            history: A call to continue, from ``Session.history`` of this or another engine with
                the same model. Output frames start at index 0.

        Raises:
            EngineFull: Every slot is taken.
            EngineStopped: The engine is not running.
            EngineFailed: The engine has failed.
            VoiceNotFound: The engine has no voice of the persona's name.
            PromptTooLong: The persona's prompt has too many frames.
            ConfigError: ``persona`` is not a ``Persona``, ``sampling`` not ``SamplingParams``, or
                ``history`` not a history of this model.
        """
        with self._lock:
            self._require_slot()  # refuse before any work
        lm = self.checkpoint.config.lm
        if history is not None:
            history = checked_history(history, lm)
        session = Session(
            persona,
            SamplingParams() if sampling is None else sampling,
            on_ready=on_ready,
            on_frame=on_frame,
            on_end=on_end,
            wake=self._thread.wake,
            callbacks=self._thread.callbacks,
            speech=AgentSpeech(partial(speech_words, tokenizer=self.checkpoint.tokenizer)),
            prompts=PromptUpdates(self._build_prompt),
            past=History(lm.window, history),
            max_queued_frames=self.config.max_queued_frames,
        )
        prompt = self._build_prompt(persona)
        with self._lock:
            self._require_slot()
            self._open.add(session)
            self._arrivals.append(PendingSession(session, prompt, history))
        self._thread.wake()
        return session

    def _build_prompt(self, persona: Persona) -> Prompt:
        voice = self._voices.get(persona.voice)
        tokens = text_prompt_tokens(persona.text_prompt, self.checkpoint.tokenizer)
        return build_prompt(voice, tokens, self.checkpoint.config)

    def _require_slot(self) -> None:
        self._thread.require_healthy()
        if not self._thread.running:
            raise EngineStopped("the engine is not running; use it in a with block or call start()")
        # Do not count closed sessions: the model thread is about to free their slots.
        if sum(not session.closed for session in self._open) >= self.max_sessions:
            self._refused += 1
            raise EngineFull(self.max_sessions)

    def converse(
        self,
        persona: Persona,
        pcm: Pcm,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object] | None = None,
        actions: Actions | None = None,
        history: CallHistory | None = None,
    ) -> Conversation:
        """Run a whole conversation with a recorded user, as fast as the machine computes it.

        Args:
            persona: Voice and role.
            pcm: The user's audio, float32 mono 24 kHz. The last frame is padded with silence.
            sampling: How tokens are sampled; the defaults of ``SamplingParams`` if not given.
            on_frame: Called with each frame in the calling thread, for progress.
            actions: Functions by frame index. Each is called with the session in the calling
                thread, between the frame before and the frame of its index. The number of frames
                as index is the end of the conversation.
            history: A call to continue; see ``open_session``.

        Raises:
            PersonaPlexError: Any error of ``open_session``, or the error that ends the session.
        """
        if self._thread.is_current:
            raise EngineStopped("converse waits for frames; it cannot be called from a callback")
        open_session = partial(self.open_session, persona, sampling, history=history)
        return converse(open_session, pcm, self.config.max_queued_frames, on_frame, actions)

    def converse_many(
        self,
        jobs: Iterable[ConversationJob[Label]],
        on_frames: Callable[[int], object] | None = None,
    ) -> Iterator[FinishedJob[Label]]:
        """Run many conversations in the engine's slots, and yield each as it ends.

        A job is read when a slot is free. See ``converse_many`` in the module of that name.
        """
        if self._thread.is_current:
            raise EngineStopped("converse_many waits for frames; do not call it from a callback")
        return converse_many(self, jobs, self.config.max_queued_frames, on_frames)

    def stats(self) -> EngineStats:
        """Metrics of the engine; cheap enough to read every second."""
        with self._lock:
            open_sessions = [session for session in self._open if not session.closed]
        return self._loop.counters.stats(
            self._loop.prefixes,
            healthy=self.healthy,
            sessions=len(open_sessions),
            queued_frames=sum(session.queued_frames for session in open_sessions),
            max_sessions=self.max_sessions,
            refused=self._refused,
            slow_callbacks=self._thread.callbacks.slow,
            stuck_callbacks=self._thread.callbacks.stuck,
        )

    # The following methods run on the model thread.

    def _prepare_thread(self) -> None:
        prepare_device(self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(cpu_threads(self.config.cpu_threads, self.checkpoint.lm))
        self._loop.warm_up()

    def _run_once(self) -> bool:
        return self._loop.run_once(self._take_arrivals())

    def _end_remaining(self, reason: PersonaPlexError) -> None:
        with self._lock:
            remaining = list(self._open)
            self._arrivals.clear()
        self._loop.clear()
        for session in remaining:
            self._end(session, None if session.closed else reason)
        process.unregister(self)

    def _take_arrivals(self) -> list[PendingSession]:
        with self._lock:
            arrivals = list(self._arrivals)
            self._arrivals.clear()
        return arrivals

    def _end(self, session: Session, error: PersonaPlexError | None) -> None:
        """Forget a session and report its end."""
        with self._lock:
            self._open.discard(session)
        report_end(session, error)

    def _abandon(self, session: Owner, error: SessionFailed) -> None:
        """End a session whose callback does not return; runs on another thread."""
        assert isinstance(session, Session)
        with self._lock:
            self._open.discard(session)
        session.abandon(error)
