"""Speech-to-text beside the audio: a real Silero, and options that are refused."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soxr
from pipecat.frames.frames import (
    InputAudioRawFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.frame_processor import FrameProcessor

from bots.stt import add_stt_options, choose_stt, transcribe
from pipecat_personaplex.audio import float_to_pcm16
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from tests.helpers.pipelines import RunningPipeline

ORDER = Path(__file__).parent / "data" / "one_small_coffee.flac"


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_stt_options(parser)
    return parser.parse_args(arguments)


def spoken(rate: int) -> np.ndarray:
    """Silence, the order and silence again: int16 [n] at a sample rate."""
    silence = np.zeros(SAMPLE_RATE // 2, dtype=np.float32)
    pcm = np.concatenate([silence, read_audio(ORDER), silence, silence])
    return float_to_pcm16(soxr.resample(pcm, SAMPLE_RATE, rate))


async def speak(pipeline: RunningPipeline, samples: np.ndarray, rate: int) -> None:
    """Send audio at the pace of a microphone: the voice activity detection runs beside it."""
    loop = asyncio.get_running_loop()
    start, count = loop.time(), rate // 50
    for index in range(len(samples) // count):
        chunk = samples[index * count : (index + 1) * count]
        await pipeline.send(InputAudioRawFrame(chunk.tobytes(), rate, 1))
        await asyncio.sleep(start + index / 50 - loop.time())


@asynccontextmanager
async def transcribed(stt: FrameProcessor, rate: int) -> AsyncIterator[RunningPipeline]:
    """A pipeline at a rate that has heard the order."""
    params = PipelineParams(audio_in_sample_rate=rate, audio_out_sample_rate=rate)
    async with RunningPipeline([transcribe(stt)], params=params) as pipeline:
        await speak(pipeline, spoken(rate), rate)
        yield pipeline


@pytest.mark.realtime
@pytest.mark.parametrize("rate", [8_000, 24_000])
async def test_speech_is_cut_out_at_16_khz_and_the_audio_passes_unchanged(rate: int) -> None:
    create = choose_stt(options("--stt", "tests.bots.my_stt:create"))
    assert create is not None
    async with transcribed(create(), rate) as pipeline:
        await pipeline.until_count(TranscriptionFrame, 1)
        [transcript] = pipeline.seen(TranscriptionFrame)
        length, _, _, heard_rate = transcript.text.split()
        # The order takes 3.0 s; Silero's margins and 0.5 s of silence come on top.
        assert 2.8 < float(length) < 5.0 and heard_rate == "16000"
        assert transcript.finalized
        assert len(pipeline.seen(VADUserStartedSpeakingFrame)) == 1
        audio = pipeline.seen(InputAudioRawFrame)
        assert {frame.sample_rate for frame in audio} == {rate}, "the branch's copy stays inside"
        heard = np.concatenate([np.frombuffer(frame.audio, np.int16) for frame in audio])
        assert np.array_equal(heard, spoken(rate)[: len(heard)]) and len(heard) > 4 * rate


class TestRefused:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--stt", "ears"], "must be none, whisper, deepgram or MODULE:FUNCTION"),
            (["--stt-model", "tiny.en"], "--stt-model needs --stt whisper"),
            (["--stt", "deepgram", "--stt-model", "x"], "--stt-model needs --stt whisper"),
            (["--stt", "tests.bots.nowhere:create"], "cannot be imported: No module named"),
            (["--stt", "tests.bots.my_stt:nothing"], "cannot be imported: .*no attribute"),
            (["--stt", ":"], "cannot be imported"),
            (["--stt", "tests.bots.my_stt:not_a_function"], "is not a function"),
        ],
    )
    def test_options(self, arguments: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as refused:
            choose_stt(options(*arguments))
        assert "\n" not in str(refused.value)

    def test_a_function_that_returns_no_service(self) -> None:
        create = choose_stt(options("--stt", "tests.bots.my_stt:create_nothing"))
        assert create is not None
        with pytest.raises(ConfigError, match="returned str, no service"):
            create()

    @pytest.mark.skipif(find_spec("faster_whisper") is None, reason="Whisper is not installed")
    @pytest.mark.parametrize("name", ["gigantic", "."])
    def test_a_whisper_model_that_does_not_exist(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        name = str(tmp_path) if name == "." else name
        with pytest.raises(ConfigError, match="Whisper's model cannot be loaded") as refused:
            choose_stt(options("--stt", "whisper", "--stt-model", name))
        assert "\n" not in str(refused.value) and name in str(refused.value)

    def test_missing_packages_and_keys(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("DEEPGRAM_API_KEY", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"pip install 'pipecat-ai\[deepgram\]'"):
            choose_stt(options("--stt", "deepgram"))
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
        with pytest.raises(ConfigError, match="needs DEEPGRAM_API_KEY"):
            choose_stt(options("--stt", "deepgram"))
        monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
        with pytest.raises(ConfigError, match=r"pip install 'pipecat-ai\[whisper\]'"):
            choose_stt(options("--stt", "whisper"))


def test_none_is_the_default_and_the_environment_may_choose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PERSONAPLEX_STT", "")
    assert choose_stt(options()) is None
    monkeypatch.setenv("PERSONAPLEX_STT", "ears")
    with pytest.raises(ConfigError, match="--stt is 'ears'"):
        choose_stt(options())
