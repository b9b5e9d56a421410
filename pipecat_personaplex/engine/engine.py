"""The engine: a model, its slots, and the one thread that steps them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from loguru import logger

from pipecat_personaplex.audio import Pcm, read_audio
from pipecat_personaplex.checkpoint.hub import resolve, resolve_model
from pipecat_personaplex.checkpoint.layout import CONFIG_FILE, MODEL_FILES, VOICES_FILE
from pipecat_personaplex.checkpoint.loader import (
    Checkpoint,
    load_checkpoint,
    loading_bar,
    read_config,
    require_files,
    resolve_quantization,
)
from pipecat_personaplex.checkpoint.voices import Voice, VoiceLibrary, encode_voice, load_voice_file
from pipecat_personaplex.config import DEFAULT_MAX_SESSIONS, EngineConfig, Persona, SamplingParams
from pipecat_personaplex.engine.codec_slots import encode_stream
from pipecat_personaplex.engine.converse import Conversation, converse
from pipecat_personaplex.engine.memory_plan import plan_engine, require_memory, resolve_max_sessions
from pipecat_personaplex.engine.prompt import build_prompt, speech_tokens, text_prompt_tokens
from pipecat_personaplex.engine.step_loop import PendingSession, StepLoop
from pipecat_personaplex.errors import EngineFailed, EngineFull, EngineStopped, PersonaPlexError
from pipecat_personaplex.interface import EngineStats, SessionFrame
from pipecat_personaplex.models.device import (
    cpu_threads,
    prepare_device,
    resolve_kv_dtype,
    resolve_target,
)
from pipecat_personaplex.session import Session

# One in the step, and one so that the session can join the next without asking.
_MAX_IN_FLIGHT_FRAMES = 2


class Engine:
    """PersonaPlex for many callers at once.

    Use it as a context manager, or call ``start`` and ``stop``. All methods may be called from
    any thread; callbacks come on the model thread and must return at once.

    Args:
        checkpoint: A loaded checkpoint.
        voices: The voices that personas may name.
        config: How to run; without a number of sessions there are ``DEFAULT_MAX_SESSIONS``, as only
            ``load`` knows what fits.

    Raises:
        ConfigError: The checkpoint or its device cannot be used with these options.
    """

    def __init__(self, checkpoint: Checkpoint, voices: VoiceLibrary, config: EngineConfig):
        config = replace(config, max_sessions=config.max_sessions or DEFAULT_MAX_SESSIONS)
        self.config = config
        checkpoint = replace(checkpoint, config=checkpoint.config.with_context(config.context))
        self.checkpoint = checkpoint
        self.device = checkpoint.mimi.frequencies.device
        self._voices = voices
        self._loop = StepLoop(checkpoint, config, self._end)

        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        # Held while the thread is started or waited for; never taken on the thread itself.
        self._lifecycle = threading.Lock()
        self._failure: EngineFailed | None = None
        # Guards what callers and the model thread share: who is open, and who is to be.
        self._lock = threading.Lock()
        self._open: set[Session] = set()
        self._arrivals: deque[PendingSession] = deque()
        self._refused = 0

    @classmethod
    def load(
        cls, model: str | Path, config: EngineConfig | None = None, *, progress: bool = False
    ) -> Engine:
        """Load a checkpoint and its voices.

        Args:
            model: A folder with a release's files, a Hugging Face repo id, ``nano``, the small
                model in this package, or ``auto``, the best of these for this machine.
            config: How to run.
            progress: Whether to show download and loading progress on the terminal.

        Raises:
            CheckpointError: The files are missing, cut off or of the wrong shape.
            ConfigError: The checkpoint's ``config.json`` or the device cannot be used, or not
                with these options, or the device has too little memory.
        """
        config = config or EngineConfig()
        target = resolve_target(config.device, config.dtype, config.quantization)
        resolve_kv_dtype(config.kv_dtype, target.dtype, target.device)
        chosen, note = resolve_model(str(model), config.device)
        if note is not None:
            logger.info(note)
        folder = resolve(chosen, progress=progress)
        require_files(folder, (*MODEL_FILES, VOICES_FILE))
        # Small files first: what is wrong with them shows before gigabytes are read.
        architecture = read_config(folder / CONFIG_FILE).with_context(config.context)
        voices = VoiceLibrary.from_archive(folder / VOICES_FILE, architecture)
        resolve_quantization(folder, architecture, config.quantization, target.device)
        config = resolve_max_sessions(architecture, config, target)
        require_memory(plan_engine(architecture, config, target), target.device)
        with loading_bar(progress) as advanced:
            checkpoint = load_checkpoint(folder, **target._asdict(), progress=advanced)
        return cls(checkpoint, voices, config)

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
        """
        if threading.current_thread() is self._thread:
            if self._stopping:
                raise EngineStopped("the engine is stopping; start it again from another thread")
            return
        with self._lifecycle:
            self._require_healthy()
            if self._thread is not None:
                if self._thread.is_alive() and not self._stopping:
                    return
                self._thread.join()  # stopped from a callback, and about to end
            self._stopping = False
            self._thread = threading.Thread(
                target=self._run, name="personaplex-engine", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End every session and the model thread; does nothing if it does not run.

        Called from a callback, it returns at once and the thread ends after that callback.
        """
        if threading.current_thread() is self._thread:
            self._stopping = True
            return
        with self._lifecycle:
            if self._thread is not None:
                self._stopping = True
                self._wake.set()
                self._thread.join()
                self._thread = None

    def _require_healthy(self) -> None:
        if self._failure is not None:
            # Each time another: one raised again and again would gather every traceback.
            raise EngineFailed(str(self._failure)) from self._failure

    @property
    def healthy(self) -> bool:
        """False once the device or the model thread has failed; then load another engine."""
        return self._failure is None

    @property
    def voices(self) -> list[str]:
        """Names that a persona may use."""
        return self._voices.names

    @property
    def max_in_flight_frames(self) -> int:
        """Frames that a session in good order may owe: given, and not answered yet."""
        return _MAX_IN_FLIGHT_FRAMES

    @property
    def max_sessions(self) -> int:
        """Slots, that is callers at once."""
        return self.config.max_sessions

    def encode_voice(self, pcm: Pcm, name: str) -> Voice:
        """Make a voice from a recording of one speaker; ten seconds do well.

        Args:
            pcm: float32 mono 24 kHz.
            name: What personas will call it.
        """
        mimi = self.checkpoint.mimi
        return encode_voice(pcm, name, lambda samples: encode_stream(mimi, samples.to(self.device)))

    def add_voice(self, name: str, path: str | Path) -> None:
        """Add a voice from an audio file, or from a ``.pt`` or ``.safetensors`` voice file.

        Raises:
            VoiceError: The voice file cannot be used.
            InvalidAudio: The recording cannot be used.
        """
        path = Path(path)
        if path.suffix.lower() in (".pt", ".safetensors"):
            self._voices.add(load_voice_file(path, name, self.checkpoint.config))
        else:
            self._voices.add(self.encode_voice(read_audio(path), name))

    def open_session(
        self,
        persona: Persona,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object],
        on_ready: Callable[[], object] | None = None,
        on_end: Callable[[PersonaPlexError | None], object] | None = None,
    ) -> Session:
        """Open a session; returns at once, while the prompt is computed in the background.

        Args:
            persona: Voice and role.
            sampling: How tokens are drawn.
            on_frame: Called with each frame, in order, on the model thread; must return at once.
            on_ready: Called once, when the prompt is in and before the first frame.
            on_end: Called once, after the last frame, with the error that ended the session or
                None after ``close``.

        Raises:
            EngineFull: Every slot is taken.
            EngineStopped: The engine is not running.
            EngineFailed: The engine has failed.
            VoiceNotFound: The persona's voice is unknown.
            PromptTooLong: The persona's prompt does not fit.
            ConfigError: The persona is no ``Persona``, or the sampling no ``SamplingParams``.
        """
        with self._lock:
            self._require_room()  # refused at once, before any work
        session = Session(
            persona,
            SamplingParams() if sampling is None else sampling,
            on_ready=on_ready,
            on_frame=on_frame,
            on_end=on_end,
            wake=self._wake.set,
            tokenize=self._tokenize,
            max_queued_frames=self.config.max_queued_frames,
        )
        voice = self._voices.get(persona.voice)
        tokens = text_prompt_tokens(persona.text_prompt, self.checkpoint.tokenizer)
        prompt = build_prompt(voice, tokens, self.checkpoint.config)
        if 0 < self.config.context <= prompt.frames:
            logger.warning(
                "a prompt of {} frames is longer than context {}: its start is forgotten",
                prompt.frames,
                self.config.context,
            )
        with self._lock:
            self._require_room()
            self._open.add(session)
            self._arrivals.append(PendingSession(session, prompt))
        self._wake.set()
        return session

    def _tokenize(self, text: str) -> list[int]:
        return speech_tokens(text, self.checkpoint.tokenizer)

    def _require_room(self) -> None:
        self._require_running()
        # A closed session holds its slot no longer than the model thread takes to notice.
        if sum(not other.closed for other in self._open) >= self.max_sessions:
            self._refused += 1
            raise EngineFull(self.max_sessions)

    def _require_running(self) -> None:
        self._require_healthy()
        if self._thread is None or self._stopping:
            raise EngineStopped("the engine is not running; use it in a with block or call start()")

    def converse(
        self,
        persona: Persona,
        pcm: Pcm,
        sampling: SamplingParams | None = None,
        *,
        on_frame: Callable[[SessionFrame], object] | None = None,
    ) -> Conversation:
        """Hold a whole conversation with a recorded caller, as fast as it goes.

        Args:
            persona: Voice and role.
            pcm: The caller, float32 mono 24 kHz; the last frame is filled up with silence.
            sampling: How tokens are drawn.
            on_frame: Called with each frame in the calling thread, for progress.

        Raises:
            PersonaPlexError: As ``open_session``, and whatever ends the session.
        """
        if threading.current_thread() is self._thread:
            raise EngineStopped("converse waits for frames; it cannot be called from a callback")
        opened = partial(self.open_session, persona, sampling)
        return converse(opened, pcm, self.config.max_queued_frames, on_frame)

    def stats(self) -> EngineStats:
        """Figures for logs and metrics; cheap enough to ask for every second."""
        with self._lock:
            open_sessions = [session for session in self._open if not session.closed]
        counters, prefixes = self._loop.counters, self._loop.prefixes
        return EngineStats(
            healthy=self.healthy,
            sessions=len(open_sessions),
            queued_frames=sum(session.queued_frames for session in open_sessions),
            max_sessions=self.max_sessions,
            steps=counters.steps,
            frames=counters.frames,
            late_frames=counters.late_frames,
            refused=self._refused,
            step_p50_ms=counters.recent_step_ms(50),
            step_p99_ms=counters.recent_step_ms(99),
            step_seconds_total=counters.step_seconds_total,
            step_histogram=tuple(counters.step_histogram),
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            prefix_bytes=prefixes.nbytes,
        )

    # The model thread.

    def _run(self) -> None:
        prepare_device(self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(cpu_threads(self.config.cpu_threads, self.checkpoint.lm))
        ending: PersonaPlexError = EngineStopped("the engine was stopped")
        try:
            self._loop.warm_up()
            while not self._stopping:
                self._wake.wait()
                self._wake.clear()
                while not self._stopping and self._loop.turn(self._take_arrivals()):
                    pass
        except BaseException as error:
            logger.opt(exception=error).error("the model thread failed")
            ending = EngineFailed(
                f"the engine failed and every session has ended: {type(error).__name__}: {error}"
            )
            ending.__cause__ = error
            self._failure = ending
        with self._lock:
            left = list(self._open)
            self._arrivals.clear()
        self._loop.clear()
        for session in left:
            self._end(session, None if session.closed else ending)

    def _take_arrivals(self) -> list[PendingSession]:
        with self._lock:
            arrivals = list(self._arrivals)
            self._arrivals.clear()
        return arrivals

    def _end(self, session: Session, error: PersonaPlexError | None) -> None:
        with self._lock:
            self._open.discard(session)
        try:
            session.end(error)
        except BaseException as raised:  # also CancelledError: no callback may end the thread
            logger.opt(exception=raised).error("a session's on_end callback raised")
