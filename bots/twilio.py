"""Twilio's side of a call: the handshake on its WebSocket, and the audio that it sends."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger
from pipecat.frames.frames import Frame
from pipecat.serializers.twilio import TwilioFrameSerializer
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipecat_personaplex.service.pace import PaceLimit

ACCOUNT_SID = re.compile(r"AC[0-9a-fA-F]{32}")
_CALL_SID = re.compile(r"CA[0-9a-fA-F]{32}")
_STREAM_SID = re.compile(r"MZ[0-9a-fA-F]{32}")
# "connected", then "start".
_HANDSHAKE_MESSAGES = 2
_RATE = 8_000
# Pipecat 1.13 hangs up with the token alone.
_HANGS_UP_WITH_KEYS = "api_key_sid" in inspect.signature(TwilioFrameSerializer).parameters
# Base64: four characters for three bytes of mu-law, one byte a sample.
_SECONDS_PER_CHARACTER = 3 / 4 / _RATE


@dataclass(frozen=True)
class TwilioStart:
    """The ids of a call; each has the form that Twilio documents.

    Attributes:
        account: Account SID.
        call: Call SID.
        stream: Stream SID.
    """

    account: str
    call: str
    stream: str


async def read_handshake(websocket: WebSocket, account: str) -> TwilioStart:
    """Read the messages with which Twilio begins a call.

    The ids are checked because they become part of URLs: the bot hangs up by an authenticated
    request to the URL of the call.

    Args:
        websocket: The accepted connection.
        account: The account whose calls are accepted.

    Raises:
        ValueError: The messages are not Twilio's, or the client has disconnected.
    """
    for _ in range(_HANDSHAKE_MESSAGES):
        try:
            message = json.loads(await websocket.receive_text())
        except (WebSocketDisconnect, KeyError):  # KeyError: a binary message
            raise ValueError("the client disconnected during the handshake") from None
        except (ValueError, RecursionError):
            continue
        if isinstance(message, dict) and message.get("event") == "start":
            return _start(message.get("start"), account)
    raise ValueError("the handshake is not Twilio's: there is no start message")


def _start(start: Any, account: str) -> TwilioStart:
    fields = start if isinstance(start, dict) else {}
    ids = TwilioStart(
        account=_checked(fields, "accountSid", ACCOUNT_SID),
        call=_checked(fields, "callSid", _CALL_SID),
        stream=_checked(fields, "streamSid", _STREAM_SID),
    )
    if ids.account != account:
        raise ValueError("the call belongs to another account than TWILIO_ACCOUNT_SID")
    return ids


def _checked(fields: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(f"the handshake is not Twilio's: {name} is not {form.pattern}")
    return value


class CallerSerializer(TwilioFrameSerializer):
    """Pipecat's serializer, without audio that arrives faster than real time.

    Args:
        ids: The ids of the call.
        environment: Has the credentials with which the bot hangs up.

    Attributes:
        pace: Counts the audio that was dropped.
    """

    def __init__(self, ids: TwilioStart, environment: Mapping[str, str] = os.environ):
        # Pipecat accepts a token or a key. With both, the token only verifies signatures.
        account: dict[str, Any] = {"auth_token": environment.get("TWILIO_AUTH_TOKEN")}
        if _HANGS_UP_WITH_KEYS and (key := environment.get("TWILIO_API_KEY")):
            secret = environment.get("TWILIO_API_SECRET")
            account = {"api_key_sid": key, "api_key_secret": secret}
        super().__init__(
            stream_sid=ids.stream,
            call_sid=ids.call,
            account_sid=ids.account,
            **account,
            region=environment.get("TWILIO_REGION") or None,
            edge=environment.get("TWILIO_EDGE") or None,
        )
        self.pace = PaceLimit()

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """Convert a message of Twilio to a frame; None for one without a meaning."""
        seconds = _media_seconds(data)
        if seconds is None:
            logger.debug("a message of the telephone call is not JSON")
            return None
        if seconds and not self.pace.allows(seconds):
            if self.pace.dropped_seconds == seconds:
                logger.warning("a telephone call sends audio faster than real time; it is dropped")
            return None
        return await super().deserialize(data)


def _media_seconds(data: str | bytes) -> float | None:
    """Duration of the audio in a message, 0 for another message; None if it is not JSON."""
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        return None
    media = message.get("media") if isinstance(message, dict) else None
    payload = media.get("payload") if isinstance(media, dict) else None
    return len(payload) * _SECONDS_PER_CHARACTER if isinstance(payload, str) else 0.0
