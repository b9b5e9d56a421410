from __future__ import annotations

import pytest
from pipecat.frames.frames import OutputAudioRawFrame, SpeechOutputAudioRawFrame, TextFrame
from pipecat.tests.utils import run_test

from pipecat_personaplex.service.playout import PlayoutMark, PlayoutMeter
from tests.helpers.pipelines import RunningPipeline


def audio(milliseconds: int, rate: int = 24_000) -> SpeechOutputAudioRawFrame:
    return SpeechOutputAudioRawFrame(bytes(2 * rate * milliseconds // 1000), rate, 1)


async def test_every_frame_except_marks_passes():
    meter = PlayoutMeter()
    await run_test(
        meter,
        frames_to_send=[audio(40), meter.sent(0.04), TextFrame("hello")],
        expected_down_frames=[SpeechOutputAudioRawFrame, TextFrame],
    )


async def test_the_backlog_is_the_audio_sent_and_not_played():
    meter = PlayoutMeter()
    async with RunningPipeline([meter]) as pipeline:
        assert meter.backlog == 0 and not meter.long
        marks = [meter.sent(0.08), meter.sent(0.08)]
        assert meter.backlog == pytest.approx(0.16)
        assert meter.long
        # The transport plays chunks of another size, at another rate.
        await pipeline.send(audio(60, rate=8_000))
        await pipeline.until_count(SpeechOutputAudioRawFrame, 1)
        assert meter.backlog == pytest.approx(0.1)
        assert not meter.long
        # Audio of other sources (a mixer, a tone) does not count.
        await pipeline.send(OutputAudioRawFrame(bytes(4800), 24_000, 1))
        await pipeline.until_count(OutputAudioRawFrame, 2)
        assert meter.backlog == pytest.approx(0.1)
        await pipeline.send(marks[0])
        await pipeline.until(lambda: meter.backlog == pytest.approx(0.08))


async def test_a_mark_removes_lost_audio_from_the_backlog():
    meter = PlayoutMeter()
    async with RunningPipeline([meter]) as pipeline:
        meter.sent(0.4)
        await pipeline.send(meter.sent(0.08))
        await pipeline.until(lambda: meter.backlog == 0)


def test_marks_are_not_interruptible():
    assert not PlayoutMark(0.08).interruptible
