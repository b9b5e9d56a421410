"""A call of the page begins when its browser has connected."""

from __future__ import annotations

import asyncio

import pytest
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection

from pipecat_personaplex.config import Persona
from pipecat_personaplex.talk.conversation import CallRequest, Conversation
from pipecat_personaplex.talk.webrtc import webrtc_transport
from tests.helpers.bots import connect_caller, webrtc_caller
from tests.helpers.engines import FakeEngine

pytestmark = pytest.mark.realtime

CALL = CallRequest(Persona("NATF2", "You sell tea."), greeting="Good morning.")


async def test_the_greeting_waits_until_the_browser_has_connected() -> None:
    """Until then the transport throws the agent's audio away."""
    connection = SmallWebRTCConnection()
    with FakeEngine() as engine:
        async with webrtc_caller() as (peer, offer):
            await connection.initialize(**offer)
            conversation = Conversation(engine, webrtc_transport(connection), CALL)
            running = asyncio.create_task(conversation.run())
            await asyncio.sleep(0.5)  # a slow network
            assert not engine.sessions
            answer = connection.get_answer()
            assert answer is not None
            track = await connect_caller(peer, answer)
            async with asyncio.timeout(10):
                await track.recv()
                while not (engine.sessions and engine.sessions[0].said):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert engine.sessions[0].said == ["Good morning."]
            await conversation.hang_up("the test is over")
            await asyncio.wait_for(running, 10)
            await connection.disconnect()
