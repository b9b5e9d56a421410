"""Lets the page steer the running call: RTVI client messages that make the agent say something."""

from __future__ import annotations

from typing import Any

from loguru import logger
from pipecat.frames.frames import Frame, LLMUpdateSettingsFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.processors.frameworks.rtvi import RTVIClientMessageFrame, RTVIServerResponseFrame

from pipecat_personaplex.config import SamplingParams
from pipecat_personaplex.errors import ConfigError, PersonaPlexError
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.service.settings import SAMPLING_FIELDS

_TYPES = ("say", "hush", "hold", "release", "prompt", "sampling")


class ClientMessages(FrameProcessor):
    """Carries out the client's messages on the agent; place it in front of the agent.

    Each message gets a server response, or an error response that says what was wrong:

    - say ``{"text": "...", "interruptible": true}``
    - hush
    - hold ``{"seconds": 1.0}``
    - release
    - prompt ``{"text": "...", "voice": "..."}``, at least one of them. The response means that the
      change was requested; if it fails, an RTVI error follows.
    - sampling ``{"temperature_text": 0.7, ...}``: any of the fields of ``SamplingParams``

    Args:
        agent: The agent of this call.
        **kwargs: Passed to ``FrameProcessor``.

    Example::

        pipeline = Pipeline([transport.input(), ClientMessages(agent), agent, transport.output()])
    """

    def __init__(self, agent: PersonaPlexLLMService, **kwargs: Any):
        super().__init__(**kwargs)
        self._agent = agent

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Carry out a client's message and respond; push every frame on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, RTVIClientMessageFrame):
            await self.push_frame(await self._respond(frame))
        await self.push_frame(frame, direction)

    async def _respond(self, message: RTVIClientMessageFrame) -> RTVIServerResponseFrame:
        try:
            await self._carry_out(message.type, message.data or {})
        except PersonaPlexError as error:
            return RTVIServerResponseFrame(message, error=str(error))
        logger.bind(session=self._agent.session_id or "").info("client message: {}", message.type)
        return RTVIServerResponseFrame(message, data={"ok": True})

    async def _carry_out(self, kind: str, data: Any) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"the data of a message must be an object, not {data!r:.40}")
        match kind:
            case "say":
                text = _text(data, "text")
                interruptible = data.get("interruptible", True)
                if not isinstance(interruptible, bool):
                    raise ConfigError(
                        f"interruptible must be true or false, not {interruptible!r:.40}"
                    )
                self._agent.say(text, interruptible=interruptible)
            case "hush":
                self._agent.hush()
            case "hold":
                self._agent.hold(_number(data, "seconds"))
            case "release":
                self._agent.release()
            case "prompt":
                await self._change_prompt(data)
            case "sampling":
                await self._change_sampling(data)
            case _:
                raise ConfigError(
                    f"unknown message type {kind!r:.40}; known are {', '.join(_TYPES)}"
                )

    async def _change_prompt(self, data: dict[str, Any]) -> None:
        delta = self._agent.Settings()
        if "text" in data:
            delta.system_instruction = _text(data, "text")
        if "voice" in data:
            delta.voice = _text(data, "voice")
        if not delta.given_fields():
            raise ConfigError("a prompt message needs a text or a voice")
        await self.push_frame(LLMUpdateSettingsFrame(delta=delta, service=self._agent))

    async def _change_sampling(self, data: dict[str, Any]) -> None:
        if not data or not data.keys() <= SAMPLING_FIELDS:
            names = ", ".join(sorted(SAMPLING_FIELDS))
            raise ConfigError(f"a sampling message has one or more of {names}")
        SamplingParams(**data)  # raises for an invalid value, before it reaches the agent
        delta = self._agent.Settings(**data)
        await self.push_frame(LLMUpdateSettingsFrame(delta=delta, service=self._agent))


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} must be a text, not {value!r:.40}")
    return value


def _number(data: dict[str, Any], name: str) -> float:
    value = data.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{name} must be a number, not {value!r:.40}")
    return value
