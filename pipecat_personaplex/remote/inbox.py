"""What a server says during a conversation: every frame once, in order."""

from __future__ import annotations

import time
from collections.abc import Callable

from loguru import logger

from pipecat_personaplex.engine.session import Pcm, SessionFrame
from pipecat_personaplex.errors import BadMessage, SessionFailed
from pipecat_personaplex.protocol.frames import ServerFrame
from pipecat_personaplex.protocol.messages import (
    Closed,
    Draining,
    Error,
    Ready,
    ServerMessage,
    Stats,
    parse_server,
)
from pipecat_personaplex.remote.outbox import Outbox
from pipecat_personaplex.remote.session import RemoteSession


class Inbox:
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
        outbox: Outbox,
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
