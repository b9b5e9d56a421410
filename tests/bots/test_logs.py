"""What a bot logs: a handful of lines a call at INFO, with session ids, as text or JSON."""

from __future__ import annotations

import asyncio
import json
import re

import aiohttp
import pytest

from tests.helpers.bots import BotProcess, receive_audio, run_bot, webrtc_caller
from tests.helpers.telephone import ACCOUNT, CREDENTIALS, OPTIONS, PUBLIC, TwilioCall, signed

LOOPBACK = "tests.bots.loopback_assistant"
GREETING = "Good morning to you."
PHONE_NUMBER = "+4930123456"


async def hold_call(bot: BotProcess) -> None:
    async with aiohttp.ClientSession(bot.url) as http, webrtc_caller() as (peer, offer):
        async with http.post("/api/offer", json=offer) as response:
            await receive_audio(peer, await response.json())


async def wait_for_line(bot: BotProcess, text: str, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while bot.log.count(text) < count:  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.02)


def call_lines(log: str) -> list[str]:
    """The INFO lines that are not uvicorn's about its start and end."""
    lines = [line for line in log.splitlines() if " INFO " in line]
    started = next(i for i, line in enumerate(lines) if "Uvicorn running on" in line)
    stopped = next((i for i, line in enumerate(lines) if "Shutting down" in line), len(lines))
    return lines[started + 1 : stopped]


async def test_a_call_is_three_info_lines() -> None:
    with BotProcess(LOOPBACK, "--greeting", GREETING) as bot:
        for calls in (1, 2):
            await hold_call(bot)
            await wait_for_line(bot, "call ended", calls)
    lines = call_lines(bot.log)
    assert len(lines) == 6, bot.log
    ids = set()
    for accepted, started, ended in (lines[:3], lines[3:]):
        assert accepted.endswith("call accepted: webrtc, client 127.0.0.1")
        (session,) = re.findall(r" INFO +([0-9a-f]{8}) session started: ready after ", started)
        assert re.search(
            rf" INFO +{session} call ended after \d+\.\d s: the caller hung up$", ended
        )
        ids.add(session)
    assert len(ids) == 2
    assert "DEBUG" not in bot.log
    assert GREETING not in bot.log and "wise and friendly teacher" not in bot.log


async def test_json_lines_have_session_and_client() -> None:
    with BotProcess(LOOPBACK, "--log-json", "--max-sessions", "1") as bot:
        async with (
            aiohttp.ClientSession(bot.url) as http,
            webrtc_caller() as (peer, offer),
            http.post("/api/offer", json=offer) as response,
        ):
            await receive_audio(peer, await response.json())
            async with http.post("/start", json={}) as refused:
                assert refused.status == 503
        await wait_for_line(bot, "call ended")
        bot.stop()
    records = [json.loads(line) for line in bot.log.splitlines() if line.startswith("{")]
    accepted, started, refused_record, ended = (
        record for record in records if re.match("call|session", record["message"])
    )
    assert accepted["message"].startswith("call accepted")
    assert started["message"].startswith("session started")
    assert refused_record["message"] == (
        "call refused: client 127.0.0.1: every slot is in use; try again in a moment"
    )
    assert ended["session"] == started["session"] and len(started["session"]) == 8
    for record in (accepted, started, refused_record, ended):
        assert record["client"] == "127.0.0.1" and record["level"] == "INFO"
    # All lines of loguru and uvicorn are JSON, but for the one that Pipecat writes on import.
    assert any(record["message"].startswith("Uvicorn running on") for record in records)
    plain = [line for line in bot.log.splitlines() if re.search(r"\bINFO\b", line)]
    assert [
        line for line in plain if not line.startswith("{") and "pipecat:<module>" not in line
    ] == []


async def test_a_phone_number_is_not_logged() -> None:
    form = {"CallSid": "CA1", "From": PHONE_NUMBER}
    with BotProcess(LOOPBACK, *OPTIONS, **CREDENTIALS) as bot:
        async with aiohttp.ClientSession(headers=signed(f"https://{PUBLIC}/", form)) as http:
            async with http.post(bot.url, data=form) as answer:
                assert answer.status == 200
        async with TwilioCall(f"{bot.url.replace('http', 'ws')}/ws") as call:
            await call.connected()
            start = {
                "accountSid": ACCOUNT,
                "streamSid": call.stream_sid,
                "callSid": call.call_sid,
            }
            await call.send("start", start=start | {"customParameters": {"from": PHONE_NUMBER}})
            await call.heard(0.1)
            await call.stop()
        await wait_for_line(bot, "call ended")
    assert len(call_lines(bot.log)) == 3, bot.log
    assert "call accepted: twilio, client 127.0.0.1" in bot.log
    assert PHONE_NUMBER not in bot.log


async def test_debug_shows_pipecats_lines() -> None:
    with BotProcess(LOOPBACK, PERSONAPLEX_LOG_LEVEL="debug") as bot:
        await hold_call(bot)
        await wait_for_line(bot, "call ended")
    assert bot.log.count(" DEBUG ") > 20
    assert "POST /api/offer" in bot.log, "uvicorn's access lines"


@pytest.mark.slow
def test_an_unknown_level_in_the_environment_gives_a_one_line_error() -> None:
    ended = run_bot("bots.assistant", PERSONAPLEX_LOG_LEVEL="loud")
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "'LOUD'" in errors[0] and "INFO" in errors[0], ended.stderr
    assert "Traceback" not in ended.stderr
