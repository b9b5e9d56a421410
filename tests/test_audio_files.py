"""Audio files: what is read, what is refused, and loudness."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pyloudnorm
import pytest
import soundfile

from pipecat_personaplex.audio_files import normalize_loudness, read_audio, write_wav
from pipecat_personaplex.errors import InvalidAudio
from tests.golden_data import VOICE_SAMPLE

RATE = 24_000


def tone(seconds: float, rate: int = RATE, hertz: float = 440, peak: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def encode(path: Path, codec: str, rate: int, channels: np.ndarray) -> None:
    """Write samples [channels, n] with FFmpeg, in the format of the suffix."""
    layout = {1: "mono", 2: "stereo"}[len(channels)]
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), "fltp", layout)
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.m4a", "aac"), ("a.mp4", "aac"), ("a.webm", "libopus"), ("a.mka", "aac")]
)
def test_formats_that_only_ffmpeg_reads(tmp_path: Path, name: str, codec: str) -> None:
    encode(tmp_path / name, codec, 48_000, np.stack([tone(1, 48_000)] * 2))
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(tmp_path / name)
    pcm = read_audio(tmp_path / name)
    assert pcm.dtype == np.float32 and len(pcm) == pytest.approx(RATE, abs=0.05 * RATE)
    spectrum = np.abs(np.fft.rfft(pcm[4_000:20_000]))
    assert np.argmax(spectrum) * RATE / 16_000 == pytest.approx(440, abs=2)
    assert np.abs(pcm[4_000:20_000]).max() == pytest.approx(0.5, abs=0.05)


def test_channels_that_cancel_each_other_are_heard_in_any_format(tmp_path: Path) -> None:
    opposite = np.stack([tone(1, 48_000), -tone(1, 48_000)])
    encode(tmp_path / "opposite.webm", "libopus", 48_000, opposite)
    soundfile.write(tmp_path / "opposite.wav", opposite.T, 48_000)
    for name in ("opposite.webm", "opposite.wav"):
        assert np.abs(read_audio(tmp_path / name)).max() > 0.4, name


@pytest.mark.parametrize("suffix", ["wav", "webm"])
def test_a_file_that_is_too_long_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"long.{suffix}"
    if suffix == "wav":
        soundfile.write(path, tone(2), RATE)
    else:
        encode(path, "libopus", 48_000, tone(2, 48_000)[None])
    with pytest.raises(InvalidAudio, match=r"lasts 2 s or more; at most 1\.5 s are accepted"):
        read_audio(path, max_seconds=1.5)
    assert len(read_audio(path, max_seconds=3)) > 1.9 * RATE


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    encode(tmp_path / "secret.webm", "libopus", 48_000, tone(1, 48_000)[None])
    (tmp_path / "list.wav").write_text("ffconcat version 1.0\nfile secret.webm\n")
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nsecret.webm\n#EXT-X-ENDLIST\n"
    )
    for name in ("list.wav", "list.m3u8"):
        with pytest.raises(InvalidAudio, match="cannot be read"):
            read_audio(tmp_path / name)


def test_a_film_without_sound_is_refused(tmp_path: Path) -> None:
    with av.open(tmp_path / "silent.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        frame = av.VideoFrame(16, 16, "yuv420p")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(InvalidAudio, match="contains no audio"):
        read_audio(tmp_path / "silent.mp4")


def test_a_24_khz_mono_file_is_read_unchanged() -> None:
    expected, rate = soundfile.read(VOICE_SAMPLE, dtype="float32")
    assert rate == RATE
    pcm = read_audio(VOICE_SAMPLE)
    assert pcm.dtype == np.float32
    np.testing.assert_array_equal(pcm, expected)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_other_sample_rates_are_resampled(tmp_path: Path, rate: int, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, tone(1, rate), rate)
    pcm = read_audio(str(path))
    assert pcm.dtype == np.float32
    assert len(pcm) == pytest.approx(RATE, abs=2)
    middle = slice(2_000, 22_000)
    tolerance = 0.05 if suffix == "ogg" else 0.005
    np.testing.assert_allclose(pcm[middle], tone(1)[: len(pcm)][middle], atol=tolerance)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "many.wav"
    loud = np.zeros((4_800, channels), np.float32)
    loud[:, 0] = tone(0.2)
    soundfile.write(path, loud, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), tone(0.2) / channels, atol=1e-6)


def test_wav_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    write_wav(path, tone(0.3))
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
    np.testing.assert_allclose(read_audio(path), tone(0.3), atol=1 / 32768)


def test_unusable_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "nothing.wav").write_bytes(b"")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), RATE, subtype="FLOAT")
    for name, expected in (
        ("missing.wav", "does not exist"),
        (".", "not a regular file"),
        ("text.wav", "cannot be read"),
        ("nothing.wav", "cannot be read"),
        ("empty.wav", "contains no samples"),
        ("nan.wav", "not finite"),
    ):
        with pytest.raises(InvalidAudio, match=expected) as caught:
            read_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_that_does_not_tell_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    """As ffmpeg and flac write FLAC to a pipe, and as a recorder leaves a WAV when it is killed."""
    flac, wav = tmp_path / "streamed.flac", tmp_path / "unfinished.wav"
    for path in (flac, wav):
        soundfile.write(path, tone(1), RATE, subtype="PCM_16")
    stored = bytearray(flac.read_bytes())
    stored[21] &= 0xF0  # 36 bits of STREAMINFO: the number of samples
    stored[22:26] = bytes(4)
    flac.write_bytes(stored)
    stored = bytearray(wav.read_bytes())
    at = stored.index(b"data") + 4
    stored[at : at + 4] = bytes(4)
    wav.write_bytes(stored)
    for path in (flac, wav):
        np.testing.assert_allclose(read_audio(path), tone(1), atol=1 / 32768)
    with pytest.raises(InvalidAudio, match=r"lasts 1 s or more; at most 0\.5 s"):
        read_audio(flac, max_seconds=0.5)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidAudio, match="cannot be written"):
        write_wav(tmp_path / "no" / "folder.wav", tone(0.1))


@pytest.mark.parametrize("peak", [0.001, 0.1, 0.9])
def test_loudness_becomes_the_requested_one(peak: float) -> None:
    pcm = normalize_loudness(tone(2, peak=peak), -24)
    assert pcm.dtype == np.float32
    assert pyloudnorm.Meter(RATE).integrated_loudness(pcm) == pytest.approx(-24, abs=0.1)


def test_loudness_needs_a_recording_of_400_ms() -> None:
    assert len(normalize_loudness(tone(0.4))) == 9_600
    with pytest.raises(InvalidAudio, match=r"lasts 0\.40 s; loudness needs at least 0\.4 s"):
        normalize_loudness(tone(0.4)[1:])


@pytest.mark.parametrize("level", [0.0, 1e-30])
def test_a_silent_recording_is_refused(level: float) -> None:
    with pytest.raises(InvalidAudio, match="is silent"):
        normalize_loudness(np.full(RATE, level, np.float32))


@pytest.mark.parametrize("rate", [1, 1_999, 768_001, 2**31 - 1])
def test_an_absurd_sample_rate_is_refused_before_resampling(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.01), RATE)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InvalidAudio, match=rf"a sample rate of {rate} Hz; 2000 to 768000 Hz are"):
        read_audio(tmp_path / "a.wav")


def test_a_recording_beyond_all_measure_is_not_called_silent() -> None:
    with pytest.raises(InvalidAudio, match="far too loud"):
        normalize_loudness(np.full(RATE, 1e30, np.float32))


def silent_flac(path: Path, seconds: int, channels: int) -> Path:
    """Write a long file block by block; silence compresses to almost nothing."""
    block = np.zeros((RATE, channels), np.int16)
    with soundfile.SoundFile(path, "w", RATE, channels, format="FLAC") as file:
        for _ in range(seconds):
            file.write(block)
    return path


def test_a_recording_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = silent_flac(tmp_path / "long.flac", 600, 8)
    tracemalloc.start()
    with pytest.raises(InvalidAudio, match=r"lasts 600 s or more; at most 240 s are accepted"):
        read_audio(path, max_seconds=240)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_the_memory_of_a_long_file_is_that_of_one_channel(tmp_path: Path) -> None:
    path = silent_flac(tmp_path / "long.flac", 300, 8)
    tracemalloc.start()
    pcm = read_audio(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pcm) == 300 * RATE
    assert peak < 2 * pcm.nbytes + (32 << 20)  # all channels would be 8 times as much


@pytest.mark.parametrize("gain", [-1.0, -0.999])
def test_channels_that_cancel_each_other_are_not_silence(tmp_path: Path, gain: float) -> None:
    left = (0.25 * np.sin(np.arange(RATE) / 20)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, gain * left], 1), RATE, "FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav"), left)


def test_channels_are_averaged_as_before(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (RATE, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    assert np.array_equal(read_audio(tmp_path / "a.wav"), samples.mean(axis=1))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk() -> None:
    with pytest.raises(InvalidAudio, match="/dev/full cannot be written: No space left"):
        write_wav("/dev/full", np.zeros(RATE, np.float32))


def test_samples_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(4_800))
    with pytest.raises(InvalidAudio, match="has no header; convert it to WAV"):
        read_audio(tmp_path / "a.raw")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    write_wav(path, np.full(RATE, 0.5, np.float32))
    assert len(read_audio(path)) == RATE


@pytest.mark.parametrize(("suffix", "subtype"), [("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", None)])
def test_files_that_were_joined_are_read_to_their_end(
    tmp_path: Path, suffix: str, subtype: str | None
) -> None:
    one, joined = tmp_path / f"one.{suffix}", tmp_path / f"joined.{suffix}"
    soundfile.write(one, tone(1), RATE, subtype=subtype)
    joined.write_bytes(2 * one.read_bytes())
    single, pcm = read_audio(one), read_audio(joined)
    assert len(single) == pytest.approx(RATE, rel=0.1)
    assert len(pcm) == pytest.approx(2 * RATE, rel=0.1)
    assert np.square(pcm[RATE + 4_000 : -4_000]).mean() > 0.5 * np.square(tone(1)).mean()
    with pytest.raises(InvalidAudio, match=r"at most 1\.5 s"):
        read_audio(joined, max_seconds=1.5)
