"""A caller of a bot that measures what it hears, in a process of its own.

python -m tests.attack.bot_victim http://127.0.0.1:7860 twilio 6
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import asdict

import aiohttp
from aiortc.mediastreams import MediaStreamTrack

from tests.attack.victim import Harm, Playout
from tests.helpers.bots import connect_caller, webrtc_caller
from tests.helpers.pipelines import tone
from tests.helpers.telephone import CHUNK_SECONDS, RATE, TwilioCall


async def telephone(url: str, seconds: float) -> Harm:
    playout = Playout()
    async with TwilioCall(f"{url.replace('http', 'ws')}/ws") as call:
        await call.answer()
        await call.heard(0.5)
        print("ready", flush=True)
        begin = len(call.arrivals)
        talking = asyncio.create_task(call.talk(tone(seconds, RATE)))
        await asyncio.sleep(seconds)
        arrivals = call.arrivals[begin:]
        talking.cancel()
    playout.arrivals = [(when, CHUNK_SECONDS) for when in arrivals]
    return playout.harm(seconds)


async def browser(url: str, seconds: float) -> Harm:
    playout = Playout()
    async with aiohttp.ClientSession(url) as http, webrtc_caller() as (peer, offer):
        async with http.post("/api/offer", json=offer) as response:
            track: MediaStreamTrack = await connect_caller(peer, await response.json())
        for _ in range(25):
            await track.recv()
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with suppress(TimeoutError):
            while loop.time() < end:
                await asyncio.wait_for(track.recv(), end - loop.time())
                playout.add(0.02)
    return playout.harm(seconds)


if __name__ == "__main__":
    run = telephone if sys.argv[2] == "twilio" else browser
    print(json.dumps(asdict(asyncio.run(run(sys.argv[1], float(sys.argv[3]))))))
