"""Processors that give up: without speech-to-text the call goes on, without others it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from bots.drive_thru import take_order
from tests.bots.my_stt import create
from tests.helpers.callers import Caller
from tests.helpers.engines import FakeEngine
from tests.helpers.logs import recorded

pytestmark = pytest.mark.realtime

GOES_ON = "the call goes on without its speech-to-text service: HTTP 401: the key was revoked"


async def test_a_call_goes_on_without_its_transcript_but_not_without_its_transport(
    tmp_path: Path,
) -> None:
    stt = create(16_000)
    with FakeEngine() as engine, recorded("INFO") as log:
        caller = Caller(np.zeros(0, np.int16), lambda: False)
        call = asyncio.create_task(take_order(caller.call(engine, tmp_path), stt))
        async with asyncio.timeout(20):
            while not caller.loudspeaker.audio:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await stt.push_error("HTTP 401:\nthe key was revoked", force_treat_as_permanent=True)
            await asyncio.sleep(0.5)
            [session] = engine.open_sessions
            heard = len(session.heard)
            await asyncio.sleep(0.5)
            assert len(session.heard) > heard and not call.done()
            assert len(log.containing(GOES_ON)) == 1 and not log.containing("call ended")

            await caller.loudspeaker.push_error("no reader", force_treat_as_permanent=True)
            await call
    [(*_, line)] = log.containing("call ended")
    assert line.endswith(": no reader")
