"""Attacks on bots that strangers can reach; prints what a caller hears in the meantime.

pytest tests/attack/test_bots.py -s
pytest -m measurement tests/attack/test_bots.py -s    # on a quiet machine: no late frame, no gap
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from pipecat_personaplex.talk.offers import MAX_CANDIDATES, MAX_OFFER_LINES
from tests.attack.victim import Victim, memory_mib
from tests.helpers.bots import (
    BotProcess,
    Messages,
    connect_caller,
    receive_audio,
    webrtc_caller,
)
from tests.helpers.telephone import CREDENTIALS, OPTIONS, PUBLIC, TwilioCall, signed

pytestmark = [
    pytest.mark.serial,
    # Attackers break their connections off and send large bodies.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LOOPBACK = "tests.bots.loopback_assistant"
SECONDS = 4.0
MAX_GROWTH_MIB = 50.0
STRICT = [False, pytest.param(True, marks=pytest.mark.measurement)]
Attack = Callable[[], Awaitable[object]]
ERRORS = (WebSocketException, OSError, aiohttp.ClientError, TimeoutError)


def websocket(bot: BotProcess) -> str:
    return f"{bot.url.replace('http', 'ws')}/ws"


async def outcome(attack: Attack) -> object:
    """What an attacker met: a status, a close code, or the name of an error."""
    try:
        return await asyncio.wait_for(attack(), SECONDS)
    except InvalidStatus as error:
        return error.response.status_code
    except ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else type(error).__name__
    except ERRORS as error:
        return type(error).__name__


async def repeat(attack: Attack, victim: Victim) -> Counter[object]:
    """Run an attack again and again while the victim's call lasts; count the outcomes."""
    outcomes: Counter[object] = Counter()
    while victim.running:
        outcomes[await outcome(attack)] += 1
        await asyncio.sleep(0.1)
    return outcomes


async def attacked(
    bot: BotProcess,
    transport: str,
    attacks: dict[str, tuple[Attack, object]],
    strict: bool,
) -> None:
    """Run all attacks at once beside a caller, and check that the caller is heard.

    Args:
        bot: The bot.
        transport: How the caller is connected.
        attacks: What is repeated while the caller's call lasts, by name, and what it must meet.
        strict: Also check that hardly any audio is late, which needs a quiet machine.
    """
    before = memory_mib(bot.pid)
    with Victim("tests.attack.bot_victim", bot.url, transport, SECONDS) as victim:
        outcomes = await asyncio.gather(*(repeat(attack, victim) for attack, _ in attacks.values()))
    growth = memory_mib(bot.pid) - before
    met = dict(zip(attacks, outcomes, strict=True))
    print(f"\n{transport}: {met}")
    print(f"{transport}: {victim.harm()}, memory {before:.0f} MiB and {growth:+.1f} MiB")
    for name, (_, expected) in attacks.items():
        assert expected in met[name], name
    harm = victim.harm()
    if strict:
        harm.check()
    assert harm.heard_seconds >= 0.5 * harm.expected_seconds, str(harm)
    assert growth < MAX_GROWTH_MIB


@pytest.mark.parametrize("strict", STRICT)
async def test_a_telephone_bot(strict: bool) -> None:
    """Also by attackers who know the account's token, since any caller's messages get so far."""
    with BotProcess(
        LOOPBACK, *OPTIONS, "--max-sessions", "3", "--silent-seconds", "2", **CREDENTIALS
    ) as bot:
        url = websocket(bot)

        async def forged() -> None:
            async with connect(url, proxy=None):
                pass

        async def webhook() -> int:
            body = io.BytesIO(b"From=" + b"1" * 1_300_000)
            headers = signed(f"https://{PUBLIC}/")
            async with aiohttp.ClientSession(bot.url) as http:
                async with http.post("/", data=body, headers=headers) as answer:
                    return answer.status

        async def unpaced(payload: bytes) -> None:
            async with TwilioCall(url) as call:
                await call.answer()
                for index in range(20_000):
                    await call.media(payload, index)

        async def traversing() -> int | None:
            async with TwilioCall(url) as call:
                call.call_sid = "../../../Messages"
                await call.answer()
                return await call.close_code()

        async def compressed() -> None:
            async with connect(
                url, proxy=None, additional_headers=signed(f"wss://{PUBLIC}/ws")
            ) as s:
                assert not s.protocol.extensions, "permessage-deflate is off"
                await s.send(json.dumps({"event": "x" * 11_000_000}))
                await s.recv()

        await attacked(
            bot,
            "twilio",
            {
                "forged": (forged, 403),
                "webhook": (webhook, 413),
                "small unpaced": (lambda: unpaced(b"\xff" * 160), "ConnectionClosedError"),
                "large unpaced": (lambda: unpaced(b"\xff" * 45_000), "ConnectionClosedError"),
                "traversing": (traversing, 1013),
                "compressed": (compressed, 1009),
            },
            strict,
        )
        assert "Traceback" not in bot.log
        # Calls that send no media hold their slots for the bound and no longer.
        silent = [TwilioCall(url) for _ in range(2)]
        begun = time.monotonic()
        for call in silent:
            await call.__aenter__()
            await call.answer()
        for call in silent:
            await call.close_code()
            await call.__aexit__(None, None, None)
        free = time.monotonic() - begun
        print(f"twilio: slots of silent calls free after {free:.1f} s")
        assert free < 8.0


@pytest.mark.parametrize("strict", STRICT)
async def test_a_browser_bot(strict: bool) -> None:
    with BotProcess(LOOPBACK, "--max-sessions", "2", "--connect-seconds", "2") as bot:
        async with webrtc_caller() as (_, offer):

            async def post(path: str, body: object) -> int:
                async with aiohttp.ClientSession(bot.url) as http:
                    async with http.post(path, json=body) as answer:
                        return answer.status

            candidate = "a=candidate:1 1 udp 1 10.0.0.1 1 typ host\r\n"
            large = offer | {"sdp": offer["sdp"] + candidate * 30_000}
            many = offer | {"sdp": offer["sdp"] + candidate * 1_200}  # a body below the limit
            # As much as passes all limits.
            sdp = offer["sdp"] + candidate * (MAX_CANDIDATES - offer["sdp"].count("a=candidate"))
            sdp += "a=rtcp-fb:* nack\r\n" * (MAX_OFFER_LINES - sdp.count("\r\n"))
            longest = offer | {"sdp": sdp}
            await attacked(
                bot,
                "webrtc",
                {
                    "absent": (lambda: post("/api/offer", offer), 429),
                    "large": (lambda: post("/api/offer", large), 413),
                    "many": (lambda: post("/api/offer", many), 429),
                    "longest": (lambda: post("/api/offer", longest), 429),
                    "invalid": (lambda: post("/api/offer", {"sdp": "a=end", "type": "offer"}), 429),
                    "start": (lambda: post("/start", {"body": ["x"] * 12_000}), 429),
                },
                strict,
            )
            # Connections that never came have held no slot.
            async with asyncio.timeout(15), webrtc_caller() as (peer, good):
                while True:
                    async with aiohttp.ClientSession(bot.url) as http:
                        async with http.post("/api/offer", json=good) as response:
                            if response.status == 200:
                                await receive_audio(peer, await response.json())
                                break
                    await asyncio.sleep(0.2)
            assert "did not connect within 2 s" in bot.log


@pytest.mark.parametrize("strict", STRICT)
async def test_a_caller_of_a_browser_bot_who_floods(strict: bool) -> None:
    """With messages and datagrams, in a call of its own."""
    with BotProcess(LOOPBACK, "--max-sessions", "2") as bot:

        async def flooding() -> None:
            messages: list[Messages] = []
            async with aiohttp.ClientSession(bot.url) as http, webrtc_caller(messages) as (peer, o):
                async with http.post("/api/offer", json=o) as response:
                    if response.status != 200:
                        return
                    await connect_caller(peer, await response.json())
                await messages[0].send("client-ready", "1", {"version": "1.0.0", "about": {}})
                channel, transport = messages[0]._channel, _transport(peer)
                for _ in range(2_000):
                    channel.send('{"label":"rtvi-ai","type":"client-message","id":"1"}')
                while True:  # until the victim's call ends
                    for _ in range(20):
                        await transport._send(b"\x80" * 1_000)
                    await asyncio.sleep(0.02)

        await attacked(bot, "webrtc", {"flooding": (flooding, "TimeoutError")}, strict)
        if strict:  # on a busy machine the attacker is too slow
            assert "too many or too large messages" in bot.log
        assert "Traceback" not in bot.log


def _transport(peer: Any) -> Any:
    return peer.getTransceivers()[0].receiver.transport.transport
