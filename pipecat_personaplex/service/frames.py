"""The model's frames as Pipecat's frames."""

from __future__ import annotations

from collections.abc import Iterator

from pipecat.frames.frames import Frame, SpeechOutputAudioRawFrame

from pipecat_personaplex.audio import Pcm, float_to_pcm16
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.service.audio import NoiseGate, StreamResampler
from pipecat_personaplex.service.playout import PlayoutMeter
from pipecat_personaplex.service.transcript import Transcript


class AgentOutput:
    """Converts the model's frames to the Pipecat frames to push.

    Args:
        playout: If given, silent audio is dropped while too much audio waits to be played.
        noise_gate_dbfs: RMS level below which audio becomes digital silence; None for no gate.
    """

    def __init__(self, playout: PlayoutMeter | None, noise_gate_dbfs: float | None):
        self._playout = playout
        self._gate = None if noise_gate_dbfs is None else NoiseGate(noise_gate_dbfs)
        self._transcript = Transcript()
        self._resampler = StreamResampler(SAMPLE_RATE, SAMPLE_RATE)

    @property
    def backlog(self) -> float | None:
        """Seconds of audio that wait to be played; None without a meter."""
        return self._playout.backlog if self._playout else None

    def set_rate(self, rate: int) -> None:
        """Set the sample rate of the audio, in Hz."""
        self._resampler = StreamResampler(SAMPLE_RATE, rate)

    def frames(self, model_frame: SessionFrame, *, keep_turn: bool) -> Iterator[Frame]:
        """Yield the Pipecat frames for 80 ms of the model, in the order to push them.

        Args:
            model_frame: The model's frame.
            keep_turn: As for ``Transcript.push``.
        """
        yield from self._transcript.push(model_frame.text, keep_turn=keep_turn)
        pcm = model_frame.pcm
        pcm, silent = self._gate.process(pcm) if self._gate else (pcm, False)
        if not (silent and self._playout is not None and self._playout.long):
            yield from self._audio(pcm)

    def interrupt(self) -> None:
        """End the agent's turn before the next model frame; see ``Transcript.interrupt``."""
        self._transcript.interrupt()

    def end_turn(self) -> list[Frame]:
        """The frames that end the agent's turn; none if no turn is open."""
        return self._transcript.close()

    def _audio(self, pcm: Pcm) -> Iterator[Frame]:
        samples = float_to_pcm16(self._resampler.push(pcm))
        frame = SpeechOutputAudioRawFrame(samples.tobytes(), self._resampler.target_rate, 1)
        # An interruption does not stop the model, so dropping its audio would only make a hole.
        frame.interruptible = False
        if self._playout is None:
            yield frame
            return
        # Count the audio before it is pushed: the output may play it at once.
        mark = self._playout.sent(frame.num_frames / frame.sample_rate)
        yield frame
        yield mark
