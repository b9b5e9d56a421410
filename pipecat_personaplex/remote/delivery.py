"""What a session sends, kept until it is certain that the server has it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from loguru import logger

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.errors import BadMessage, SessionFailed
from pipecat_personaplex.interface import SessionFrame
from pipecat_personaplex.protocol.session_frames import ClientFrame, ServerFrame
from pipecat_personaplex.protocol.session_messages import (
    Closed,
    Draining,
    Error,
    Ready,
    Say,
    ServerMessage,
    Stats,
    Update,
    parse_server,
)
from pipecat_personaplex.remote.session import RemoteSession

# Frames on their way or in the server's queue. More than the longest way takes, and few enough
# that no server has to drop one when they all come at once after a cut.
MAX_FRAMES = 8
"""Frames of a session that may be on their way at once."""
# A server that answers no frame confirms nothing, and an idle caller pushes none.
_MAX_INSTRUCTIONS = 64

_M = TypeVar("_M", str, bytes)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A message on its way.

    Attributes:
        sequence: Of the frame; of an instruction, that of the frame after it.
        message: As it was sent.
        arrived: When the caller gave the frame's last sample; None for an instruction.
        sent: When it was sent first.
    """

    sequence: int
    message: str | bytes
    arrived: float | None
    sent: float


class SendWindow:
    """What goes to the server, in order, across connections.

    Only frames are answered. They travel in order with the instructions between them, so an answer
    also confirms what was sent before its frame.

    Args:
        session: Where frames and instructions come from.
        encode: Makes a frame's bytes, once.
    """

    def __init__(self, session: RemoteSession, encode: Callable[[Pcm], bytes]):
        self._session = session
        self._encode = encode
        # Bounded by MAX_FRAMES and _MAX_INSTRUCTIONS: past them nothing is taken from the session,
        # whose own queues then drop frames and refuse words.
        self._sent: deque[_Sent] = deque()
        self._again: deque[str | bytes] = deque()
        self._next_sequence = 0
        self._frames = 0

    @property
    def oldest(self) -> float:
        """When the oldest frame without an answer was sent; infinity if there is none."""
        return next((sent.sent for sent in self._sent if sent.arrived is not None), math.inf)

    def next(self) -> str | bytes | None:
        """The next message, or None while there is none."""
        if self._again:
            return self._again.popleft()
        if not self._session.ready:
            return None
        return self._next_instruction() or self._next_frame()

    def _next_instruction(self) -> str | None:
        if len(self._sent) - self._frames >= _MAX_INSTRUCTIONS:
            return None
        sampling = self._session.take_new_sampling()
        if sampling is not None:
            return self._keep(Update(sampling=sampling).model_dump_json(), None)
        text = self._session.take_unsaid()
        return None if text is None else self._keep(Say(text=text).model_dump_json(), None)

    def _next_frame(self) -> bytes | None:
        frame = self._session.take() if self._frames < MAX_FRAMES else None
        if frame is None:
            return None
        message = ClientFrame(self._next_sequence, self._encode(frame.pcm)).pack()
        self._keep(message, frame.arrived)
        self._next_sequence += 1
        self._frames += 1
        return message

    def _keep(self, message: _M, arrived: float | None) -> _M:
        self._sent.append(_Sent(self._next_sequence, message, arrived, time.monotonic()))
        return message

    def answered(self) -> float:
        """The oldest frame has its answer; returns when the caller gave it.

        Raises:
            BadMessage: No frame waits for one.
        """
        while self._sent:
            arrived = self._sent.popleft().arrived
            if arrived is not None:
                self._frames -= 1
                return arrived
        raise BadMessage("an answer came to a frame that was not sent")

    def forget(self, frames: int) -> int:
        """The server has dropped its oldest frames; returns how many that were."""
        dropped = max(0, min(frames, self._frames))
        for _ in range(dropped):
            self.answered()
        return dropped

    def resume(self, next_frame: int) -> None:
        """Send again from the frame that the server wants next.

        Raises:
            BadMessage: It has answered that one, or it was never sent.
        """
        first = self._next_sequence - self._frames
        if not first <= next_frame <= self._next_sequence:
            raise BadMessage(
                f"it wants frame {next_frame} next, of {first} to {self._next_sequence}"
            )
        self._again = deque(s.message for s in self._sent if s.sequence >= next_frame)


class ReceiveWindow:
    """Takes messages in, across connections.

    Args:
        session: Gets the frames.
        outbox: What they answer.
        decode: Makes a frame's samples; called for each one once.
        url: Of the server, for the log.
        drains: Called when the server says that it is stopping.
    """

    def __init__(
        self,
        session: RemoteSession,
        outbox: SendWindow,
        decode: Callable[[bytes], Pcm],
        url: str,
        drains: Callable[[], object],
    ):
        self.next_frame = 0
        self._drains = drains
        self._session = session
        self._outbox = outbox
        self._decode = decode
        self._url = url
        self._dropped = 0  # as the server has counted

    def take(self, message: str | bytes) -> Error | None:
        """Do what a message asks for.

        Returns:
            An error that ends the session.

        Raises:
            BadMessage: It is none that may come now.
            InvalidAudio: It is a frame whose audio is none.
            SessionFailed: The server has closed the session, or a callback raised.
        """
        if isinstance(message, str):
            return self._told(parse_server(message))
        self._answered(ServerFrame.unpack(message))
        return None

    def ready(self) -> None:
        """The prompt is in.

        Raises:
            SessionFailed: The caller's callback raised.
        """
        if not self._session.ready:
            self._session.mark_ready()

    def _answered(self, frame: ServerFrame) -> None:
        if frame.sequence < self.next_frame:
            return  # sent again, and not needed
        if frame.sequence > self.next_frame:
            raise BadMessage(f"frame {frame.sequence} came where {self.next_frame} was due")
        arrived = self._outbox.answered()
        self.next_frame += 1
        answer = SessionFrame(
            frame.sequence,
            self._decode(frame.audio),
            frame.text,
            frame.text_token,
            frame.agent_codes,
            frame.user_codes,
            frame.timings,
        )
        self._session.receive(answer, time.monotonic() - arrived)

    def _told(self, message: ServerMessage) -> Error | None:
        match message:
            case Ready():
                self.ready()
            case Stats(dropped_frames=dropped):
                self._session.count_dropped(self._outbox.forget(dropped - self._dropped))
                self._dropped = max(dropped, self._dropped)
            case Draining(seconds=seconds):
                self._drains()
                logger.info("{} ends its sessions in {:g} s", self._url, seconds)
            case Error(fatal=False):
                logger.warning("{}: {}", self._url, message.message)
            case Error():
                return message
            case Closed():
                raise SessionFailed(f"{self._url} closed the session")
            case _:
                raise BadMessage(f"{message.type!r} came during the conversation")
        return None
