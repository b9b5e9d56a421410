"""The page steers the running call by RTVI messages."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from pipecat.processors.frameworks.rtvi import RTVIClientMessageFrame, RTVIServerResponseFrame

from pipecat_personaplex.config import Persona, SamplingParams
from pipecat_personaplex.service.llm import PersonaPlexLLMService
from pipecat_personaplex.talk.client_messages import ClientMessages
from tests.helpers.bots import BotProcess, Messages, receive_audio, webrtc_caller
from tests.helpers.engines import FakeEngine
from tests.helpers.pipelines import Events, ManualClock, RunningPipeline, started

LOOPBACK = "tests.bots.loopback_assistant"


class Page:
    """A call with an agent, and the responses to the page's messages."""

    def __init__(self, fake: FakeEngine):
        self.agent = PersonaPlexLLMService(fake, clock=ManualClock())
        self.pipeline = RunningPipeline([ClientMessages(self.agent), self.agent])
        self.events = Events(self.agent)

    async def send(self, kind: str, data: Any = None) -> RTVIServerResponseFrame:
        count = len(self.pipeline.seen(RTVIServerResponseFrame))
        message = RTVIClientMessageFrame(msg_id=str(count), type=kind, data=data)
        await self.pipeline.send(message)
        await self.pipeline.until_count(RTVIServerResponseFrame, count + 1)
        response = self.pipeline.seen(RTVIServerResponseFrame)[-1]
        assert response.client_msg is message
        return response


async def test_messages_act_on_the_running_call() -> None:
    with FakeEngine() as fake:
        page = Page(fake)
        async with page.pipeline:
            await started(page.pipeline, page.events)
            session = fake.sessions[0]
            for kind, data in (
                ("say", {"text": "One moment."}),
                ("say", {"text": "Goodbye.", "interruptible": False}),
                ("hush", None),
                ("hold", {"seconds": 2}),
                ("release", {}),
                ("prompt", {"text": "You sell tea.", "voice": "NATM1"}),
            ):
                response = await page.send(kind, data)
                assert (response.data, response.error) == ({"ok": True}, None)
            assert session.said == ["One moment.", "Goodbye."]
            assert [speech.text for speech in session.hushed] == ["One moment."]
            assert session.holds == [2, 0]
            await page.pipeline.until(lambda: page.events.named("on_prompt_changed"))
            assert session.persona == Persona("NATM1", "You sell tea.")
            # Only what a message names is changed.
            await page.send("prompt", {"text": "You sell hats."})
            await page.pipeline.until(lambda: session.prompts[1:])
            assert session.prompts[1] == Persona("NATM1", "You sell hats.")
            session.hush()
            await page.send("sampling", {"temperature_text": 0.2, "top_k_text": 5})
            await page.pipeline.until(lambda: session.sampling.top_k_text == 5)
            assert session.sampling == SamplingParams(temperature_text=0.2, top_k_text=5)
    assert len(fake.sessions) == 1


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("say", None, "text must be a text, not None"),
        ("say", {"text": " "}, "text must be a text"),
        ("say", ["Hello."], "must be an object"),
        ("say", {"text": "Hello.", "interruptible": "no"}, "interruptible must be true or false"),
        ("hold", {"seconds": "long"}, "seconds must be a number, not 'long'"),
        ("hold", {"seconds": 31}, "30 s"),
        ("hold", {"seconds": float("nan")}, "30 s"),
        ("prompt", {}, "needs a text or a voice"),
        ("prompt", {"voice": 7}, "voice must be a text"),
        ("sampling", {}, "one or more of seed, temperature_audio"),
        ("sampling", {"warmth": 1}, "one or more of seed, temperature_audio"),
        ("sampling", {"temperature_text": 11}, "temperature_text must be from 0"),
        (
            "dance",
            {},
            "unknown message type 'dance'; known are say, hush, hold, release, prompt, sampling",
        ),
    ],
)
async def test_an_invalid_message_gets_an_error_response(
    kind: str, data: Any, message: str
) -> None:
    with FakeEngine() as fake:
        page = Page(fake)
        async with page.pipeline:
            await started(page.pipeline, page.events)
            response = await page.send(kind, data)
            assert response.error is not None and message in response.error
            session = fake.sessions[0]
            assert not (session.said or session.holds or session.prompts)


async def test_a_message_without_a_session_gets_an_error_response() -> None:
    with FakeEngine(max_sessions=0) as fake:
        page = Page(fake)
        async with page.pipeline:
            response = await page.send("hold", {"seconds": 1})
            assert response.error is not None and "no open session" in response.error


async def test_a_page_steers_the_assistant_over_its_data_channel() -> None:
    calls: list[Messages] = []
    with BotProcess(LOOPBACK) as bot:
        async with aiohttp.ClientSession(bot.url) as http, webrtc_caller(calls) as (peer, body):
            async with http.post("/api/offer", json=body) as response:
                await receive_audio(peer, await response.json())
            [messages] = calls
            about = {"library": "tests", "library_version": "1", "platform": "python"}
            await messages.send("client-ready", "0", {"version": "1.0.0", "about": about})
            await messages.until(lambda message: message["type"] == "bot-ready")
            text = {"text": "One moment please."}
            await messages.send("client-message", "1", {"t": "say", "d": text})
            said = await messages.until(lambda message: message.get("id") == "1")
            assert said["type"] == "server-response"
            assert said["data"] == {"t": "say", "d": {"ok": True}}
            await messages.send("client-message", "2", {"t": "hold", "d": {"seconds": 99}})
            refused = await messages.until(lambda message: message.get("id") == "2")
            assert refused["type"] == "error-response" and "30 s" in refused["data"]["error"]
            await messages.until(lambda message: "please." in str(message.get("data")))
        assert "client message: say" in bot.log
