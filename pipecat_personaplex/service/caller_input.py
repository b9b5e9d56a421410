"""The caller's audio frames as one stream for the model: any format, and several participants."""

from __future__ import annotations

import numpy as np
from loguru import logger
from pipecat.frames.frames import InputAudioRawFrame, UserAudioRawFrame

from pipecat_personaplex.audio import Pcm, pcm16_to_float
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.service.audio import StreamResampler

_BYTES = 2  # of a sample
_EMPTY = np.zeros(0, dtype=np.float32)
# Audio of a participant that may wait for the one who sets the pace; 160 ms. More means that the
# latter has stopped sending.
_MAX_WAITING = SAMPLE_RATE * 160 // 1000
_MAX_PARTICIPANTS = 32
# After audio that the transport has mixed, audio of single participants is ignored for this long:
# the mix contains it.
_MIX_SECONDS = 1.0
_LOWEST_RATE, _HIGHEST_RATE = 1_000, 384_000
_MOST_CHANNELS = 32


class FormatCheck:
    """Refuses frames whose sample rate or number of channels no microphone has.

    A client may send any numbers, and memory and time of a conversion grow with them. The first
    refusal of a call is logged.
    """

    def __init__(self) -> None:
        self._warned = False

    def allows(self, frame: InputAudioRawFrame) -> bool:
        """Whether a frame has from 1 to 384 kHz and from 1 to 32 channels."""
        rate, channels = frame.sample_rate, frame.num_channels
        allowed = _LOWEST_RATE <= rate <= _HIGHEST_RATE and 1 <= channels <= _MOST_CHANNELS
        if not allowed and not self._warned:
            self._warned = True
            logger.warning(
                "audio of {} Hz with {} channels is dropped: no microphone has this format",
                *(rate, channels),
            )
        return allowed


class CallerInput:
    """Converts the caller's audio frames.

    Sample rate and channels may change during a call, and a frame may end within a sample.
    ``UserAudioRawFrame`` carries the audio of one participant of several; their audio is mixed.
    """

    def __init__(self) -> None:
        self._single = _SampleStream()
        self._participants: dict[str, _SampleStream] = {}
        self._mixer = ParticipantMixer()
        self._mix_seconds = 0.0
        self._formats = FormatCheck()

    def pcm(self, frame: InputAudioRawFrame) -> Pcm:
        """The audio of a frame: 16-bit [n * channels] -> float32 mono 24 kHz [m].

        Returns:
            Empty for a participant who does not set the pace: their audio comes with the next
            frame of the one who does. Empty, too, if no microphone has the frame's format.
        """
        if not self._formats.allows(frame):
            return _EMPTY
        if not isinstance(frame, UserAudioRawFrame):
            self._mix_seconds = _MIX_SECONDS
            return self._single.pcm(frame)
        if self._mix_seconds > 0:
            self._mix_seconds -= frame.num_frames / frame.sample_rate
            return _EMPTY
        stream = self._participants.get(frame.user_id)
        if stream is None:
            stream = self._join(frame.user_id)
        return self._mixer.push(frame.user_id, stream.pcm(frame))

    def _join(self, participant: str) -> _SampleStream:
        if len(self._participants) >= _MAX_PARTICIPANTS:
            oldest = next(iter(self._participants))
            del self._participants[oldest]
            self._mixer.remove(oldest)
        stream = self._participants[participant] = _SampleStream()
        if len(self._participants) == 2:
            logger.info("several participants send audio: the model hears their mix")
        return stream


class _SampleStream:
    """Converts one stream of 16-bit chunks; carries a sample that a chunk contains in part."""

    def __init__(self) -> None:
        self._resampler = StreamResampler(SAMPLE_RATE, SAMPLE_RATE)
        self._channels = 1
        self._partial = b""

    def pcm(self, frame: InputAudioRawFrame) -> Pcm:
        rate, channels = frame.sample_rate, frame.num_channels
        if rate != self._resampler.source_rate:
            self._resampler = StreamResampler(rate, SAMPLE_RATE)
            self._partial = b""
        if channels != self._channels:
            self._channels, self._partial = channels, b""
        audio = self._partial + frame.audio if self._partial else frame.audio
        whole = len(audio) - len(audio) % (_BYTES * channels)
        self._partial = bytes(audio[whole:])
        pcm = pcm16_to_float(np.frombuffer(audio, np.int16, whole // _BYTES))
        if channels > 1:
            pcm = pcm.reshape(-1, channels).mean(axis=1)
        return self._resampler.push(pcm)


class ParticipantMixer:
    """Mixes the audio of several participants into one stream in real time.

    One participant sets the pace: the mix continues when their audio arrives. The audio of the
    others waits until then, so it never counts as time that has passed. If the one who sets the
    pace stops sending, another one takes over.

    Example::

        mixer = ParticipantMixer()
        mixer.push("a", pcm)                    # returns the mix
        mixer.push("b", pcm)                    # returns nothing; part of the next mix
    """

    def __init__(self) -> None:
        self._leader: str | None = None
        self._waiting: dict[str, Pcm] = {}

    def push(self, participant: str, pcm: Pcm) -> Pcm:
        """Add audio of a participant: float32 [n] mono 24 kHz; returns the mix, [m]."""
        if self._leader is None:
            self._leader = participant
        elif participant != self._leader:
            pcm = np.concatenate([self._waiting.get(participant, _EMPTY), pcm])
            if len(pcm) <= _MAX_WAITING:
                self._waiting[participant] = pcm
                return _EMPTY
            self._waiting.pop(participant, None)
            self._leader = participant
        return self._mix(pcm)

    def remove(self, participant: str) -> None:
        """Forget a participant."""
        self._waiting.pop(participant, None)
        if self._leader == participant:
            self._leader = None

    def _mix(self, pcm: Pcm) -> Pcm:
        if not self._waiting:
            return pcm
        mixed = pcm.copy()
        for participant, waiting in self._waiting.items():
            count = min(len(waiting), len(mixed))
            mixed[:count] += waiting[:count]
            self._waiting[participant] = waiting[count:]
        return np.clip(mixed, -1.0, 1.0)
