"""Exactly-once, in-order delivery of a session's messages over connections that may break.

``SendWindow`` stores what was sent until the server has confirmed it, and sends it again after a
resumption. ``ReceiveWindow`` drops what arrives a second time. Each belongs to one server: a call
that moves gets new ones.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from loguru import logger

from pipecat_personaplex.audio import Pcm, QueuedFrame
from pipecat_personaplex.errors import BadMessage, SessionFailed
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.protocol.session_frames import ClientFrame, ServerFrame
from pipecat_personaplex.protocol.session_messages import (
    Closed,
    Draining,
    Error,
    Instruction,
    Prompted,
    Ready,
    ServerMessage,
    SpeechState,
    Stats,
    parse_server,
)
from pipecat_personaplex.remote.open_instructions import encode
from pipecat_personaplex.remote.session import RemoteSession

# In transit or in the server's queue. More than the longest round trip needs, and few enough that
# a server drops none when all arrive at once after a resumption.
MAX_IN_FLIGHT_FRAMES = 8
"""Input frames of a session that may be sent and not confirmed."""
# A server that returns no frames confirms no instructions either, and a caller that pushes no
# audio gets no frames: without a limit, instructions would pile up.
_MAX_IN_FLIGHT_INSTRUCTIONS = 64

_M = TypeVar("_M", str, bytes)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A sent message that the server has not confirmed.

    Attributes:
        sequence: The input frame's sequence number; for an instruction, that of the next frame.
        message: The encoded message.
        sent: When the message was first sent.
        frame: The input frame; None for an instruction.
        instruction: The instruction; None for an input frame.
        number: How many instructions were sent before this message.
    """

    sequence: int
    message: str | bytes
    sent: float
    frame: QueuedFrame | None
    instruction: Instruction | None
    number: int


class SendWindow:
    """Takes input frames and instructions from a session and puts them into sending order.

    The server confirms an input frame by the output frame it returns for it. Instructions (``say``,
    ``hold`` and others) have no confirmation of their own: the connection preserves the order, so
    an output frame also confirms every instruction sent before its input frame.

    Args:
        session: The source of frames and instructions.
        encode: Encodes a frame, float32 [1920]. Called once a frame, in order: Opus has state.
    """

    def __init__(self, session: RemoteSession, encode: Callable[[Pcm], bytes]):
        self._session = session
        self._encode = encode
        # Bounded by the two limits above: at a limit, nothing more is taken from the session, whose
        # own queues then drop frames and refuse texts.
        self._sent: deque[_Sent] = deque()
        self._resend: deque[str | bytes] = deque()
        self._next_sequence = 0
        self._frames = 0  # frames in _sent; the rest of _sent are instructions
        self._instructions = 0  # sent so far

    @property
    def oldest_sent(self) -> float:
        """When the oldest unconfirmed input frame was sent (monotonic); infinity if none is."""
        return next((sent.sent for sent in self._sent if sent.frame is not None), math.inf)

    def next(self) -> str | bytes | None:
        """The next message to send; None if nothing waits."""
        if self._resend:
            return self._resend.popleft()
        if not self._session.ready:
            return None
        return self._next_instruction() or self._next_frame()

    def _next_instruction(self) -> str | None:
        if len(self._sent) - self._frames >= _MAX_IN_FLIGHT_INSTRUCTIONS:
            return None
        instruction = self._session.instructions.take()
        if instruction is None:
            return None
        message = self._record(encode(instruction), None, instruction)
        self._instructions += 1
        return message

    def _next_frame(self) -> bytes | None:
        frame = self._session.take_frame() if self._frames < MAX_IN_FLIGHT_FRAMES else None
        if frame is None:
            return None
        message = ClientFrame(self._next_sequence, self._encode(frame.pcm)).pack()
        self._record(message, frame, None)
        self._next_sequence += 1
        self._frames += 1
        return message

    def _record(
        self, message: _M, frame: QueuedFrame | None, instruction: Instruction | None
    ) -> _M:
        now, number = time.monotonic(), self._instructions
        self._sent.append(_Sent(self._next_sequence, message, now, frame, instruction, number))
        return message

    def confirm(self) -> QueuedFrame:
        """Remove the oldest input frame and the instructions before it.

        Returns:
            The input frame.

        Raises:
            BadMessage: Every frame is confirmed already.
        """
        while self._sent:
            sent = self._sent.popleft()
            if sent.instruction is not None:
                self._session.instructions.confirm(sent.instruction)
            if sent.frame is not None:
                self._frames -= 1
                return sent.frame
        raise BadMessage("an output frame came for an input frame that was not sent")

    def discard(self, frames: int) -> int:
        """Remove the oldest input frames, which the server has dropped.

        Returns:
            How many were removed: at most the frames that are unconfirmed.
        """
        dropped = max(0, min(frames, self._frames))
        for _ in range(dropped):
            self.confirm()
        return dropped

    def unconfirmed(self) -> list[QueuedFrame]:
        """The input frames that are sent and not confirmed, in order."""
        return [sent.frame for sent in self._sent if sent.frame is not None]

    def resume_from(self, next_frame: int, instructions: int | None) -> None:
        """Send again everything that the server does not have.

        Args:
            next_frame: The frame that the server expects next.
            instructions: Instructions that the server has; None if it does not say.

        Raises:
            BadMessage: The server has confirmed that frame already, or it was never sent, or the
                server counts more instructions than were sent.
        """
        first = self._next_sequence - self._frames
        if not first <= next_frame <= self._next_sequence:
            raise BadMessage(
                f"the server wants frame {next_frame} next; it must be from {first} to "
                f"{self._next_sequence}"
            )
        if instructions is not None and instructions > self._instructions:
            raise BadMessage(
                f"the server has {instructions} instructions, and {self._instructions} were sent"
            )
        self._resend = deque(
            sent.message
            for sent in self._sent
            if (
                sent.sequence >= next_frame
                if sent.frame is not None or instructions is None
                else sent.number >= instructions
            )
        )


class ReceiveWindow:
    """Handles the server's messages during a session, across connections.

    Args:
        session: Receives the output frames.
        send_window: The input frames that output frames confirm.
        decode: Decodes a frame's audio to float32 [1920]. Called once a frame, in order: Opus has
            state.
        url: The server's URL, for the log.
        on_draining: Called when the server reports that it is stopping.

    Attributes:
        next_frame: Number of the next output frame of this server.
        ready_at: When this server had computed the prompt, in monotonic seconds; infinite before.
    """

    def __init__(
        self,
        session: RemoteSession,
        send_window: SendWindow,
        decode: Callable[[bytes], Pcm],
        url: str,
        on_draining: Callable[[], object],
    ):
        self.next_frame = 0
        self.ready_at = math.inf
        self._first_index = session.next_index  # not 0 if the call has moved here
        self._on_draining = on_draining
        self._session = session
        self._send_window = send_window
        self._decode = decode
        self._url = url
        self._reported_drops = 0

    def receive(self, message: str | bytes) -> Error | None:
        """Handle one message.

        Returns:
            The message if it is an error that ends the session.

        Raises:
            BadMessage: Not a valid message at this point of a session.
            InvalidAudio: The audio of a frame does not decode.
            SessionFailed: The server has closed the session, or a callback raised.
        """
        if isinstance(message, str):
            return self._handle_control(parse_server(message))
        self._handle_frame(ServerFrame.unpack(message))
        return None

    def mark_ready(self) -> None:
        """Note that the server has computed the prompt; report it once in a call.

        Raises:
            SessionFailed: The caller's callback raised.
        """
        self.ready_at = min(self.ready_at, time.monotonic())
        if not self._session.ready:
            self._session.mark_ready()

    def _handle_frame(self, frame: ServerFrame) -> None:
        if frame.sequence < self.next_frame:
            return  # sent again after a resumption, but it had arrived
        if frame.sequence > self.next_frame:
            raise BadMessage(
                f"frame {frame.sequence} came where frame {self.next_frame} was expected"
            )
        confirmed = self._send_window.confirm()
        self.next_frame += 1
        output = SessionFrame(
            self._first_index + frame.sequence,
            self._decode(frame.audio),
            frame.text,
            frame.text_token,
            frame.agent_codes,
            frame.user_codes,
            frame.timings,
        )
        seconds = time.monotonic() - confirmed.arrived
        self._session.deliver(output, seconds, confirmed.pcm)
        self._session.run_callbacks()

    def _handle_control(self, message: ServerMessage) -> Error | None:
        log = logger.bind(session=self._session.id)
        match message:
            case Ready():
                self.mark_ready()
            case SpeechState() as report:
                self._session.instructions.handle_speech(report)
                self._session.run_callbacks()
            case Prompted() as result:
                self._session.handle_prompted(result)
                self._session.run_callbacks()
            case Stats(dropped_frames=dropped):
                # The server's counter is a total: only its growth is new.
                new = self._send_window.discard(dropped - self._reported_drops)
                self._session.count_dropped(new)
                self._reported_drops = max(dropped, self._reported_drops)
            case Draining(seconds=seconds):
                self._on_draining()
                log.info(
                    "{}: the server is stopping; it ends sessions in {:g} s", self._url, seconds
                )
            case Error(fatal=False):
                log.warning("{}: {}", self._url, message.message)
            case Error():
                return message
            case Closed():
                raise SessionFailed(f"{self._url} closed the session")
            case _:
                raise BadMessage(f"{message.type!r} came during the conversation")
        return None
