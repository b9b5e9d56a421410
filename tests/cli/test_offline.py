"""``personaplex offline``: its outputs, its options and the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile

from pipecat_personaplex import Engine, callbacks
from pipecat_personaplex.audio_files import read_audio
from pipecat_personaplex.cli import main
from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.constants import AGENT_CODES, FRAME_SAMPLES, SAMPLE_RATE, TEXT
from pipecat_personaplex.errors import SessionFailed
from pipecat_personaplex.words import words_of
from tests.golden_data import CHECKPOINT, RESTAURANT, VOICE_SAMPLE, conversation
from tests.helpers.commands import Codes, offline, one_line, process, tokens


def assert_same_tokens(one: dict[str, Codes], other: dict[str, Codes]) -> None:
    assert one.keys() == other.keys() == {"text_tokens", "agent_codes", "user_codes"}
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def assert_golden(folder: Path, name: str) -> None:
    """Check that tokens and audio are those of the reference, one frame earlier."""
    golden, output = conversation(name), tokens(folder)
    frames = golden.tokens.shape[1]
    assert {key: value.shape for key, value in output.items()} == {
        "text_tokens": (frames,),
        "agent_codes": (8, frames),
        "user_codes": (8, frames),
    }
    assert all(value.dtype == np.int64 for value in output.values())
    np.testing.assert_array_equal(output["text_tokens"][:-1], golden.tokens[TEXT, 1:])
    np.testing.assert_array_equal(output["agent_codes"][:, :-1], golden.tokens[AGENT_CODES, 1:])
    np.testing.assert_array_equal(output["user_codes"], golden.user_codes)
    info = soundfile.info(folder / "out.wav")
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
    assert info.frames == len(golden.user_pcm)
    reference = golden.agent_pcm[FRAME_SAMPLES:]
    np.testing.assert_allclose(
        read_audio(folder / "out.wav")[: len(reference)], reference, atol=1.1e-3
    )


@pytest.mark.parametrize("name", ["restaurant", "friend"])
def test_output_equals_the_reference(
    callers: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    """Once as a process of its own, once within this one."""
    persona = conversation(name).persona
    arguments = offline(callers / f"{name}.wav", tmp_path, voice=persona.voice)
    arguments += ["--text-prompt", persona.text_prompt]
    if name == "restaurant":
        result = process(*arguments)
        code, out, err = result.returncode, result.stdout, result.stderr
    else:
        code = main(arguments)
        out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    assert out.count("\n") == 1 and "out.wav" in out
    assert_golden(tmp_path, name)


def test_a_busy_machine_is_no_fault_of_a_file(
    callers: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callbacks, "FRAME_SECONDS", -1.0)  # every callback counts as slow
    persona = conversation("friend").persona
    arguments = offline(callers / "friend.wav", tmp_path, voice=persona.voice)
    assert main([*arguments, "--text-prompt", persona.text_prompt]) == 0
    assert capfd.readouterr().err == ""


def test_recorded_voice_and_its_voice_files_equal_the_preset(
    callers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voices: list[Path] = [VOICE_SAMPLE]
    for suffix in (".pt", ".safetensors"):
        voices.append(tmp_path / f"owen{suffix}")
        encode = ["voices", "encode", str(VOICE_SAMPLE), "-o", str(voices[-1])]
        assert main([*encode, "--model", str(CHECKPOINT), "--dtype", "float32"]) == 0
        assert "20 frames, 1.60 s" in capsys.readouterr().out
    for voice in voices:
        arguments = offline(callers / "restaurant.wav", tmp_path, voice=voice)
        assert main([*arguments, "--text-prompt", RESTAURANT.text_prompt]) == 0
        assert_golden(tmp_path, "restaurant")
    assert capsys.readouterr().err == ""


def test_text_file_has_words_pieces_and_settings(callers: Path, tmp_path: Path) -> None:
    prompt = "Dein Name ist Jürgen."
    arguments = offline(callers / "friend.wav", tmp_path, "--seed", "7", "--text-prompt", prompt)
    assert main(arguments) == 0
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    words, pieces = written.pop("words"), written.pop("pieces")
    assert written == {
        "model": str(CHECKPOINT),
        "voice": "NATM1",
        "text_prompt": prompt,
        "seed": 7,
        "temperature_audio": 0.0,
        "temperature_text": 0.0,
        "top_k_audio": 250,
        "top_k_text": 25,
        "frames": 50,
        "frame_seconds": 0.08,
    }
    tokenizer = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer_spm_32k_3.model"))
    ids = tokens(tmp_path)["text_tokens"].tolist()
    assert pieces == [
        "" if token in (0, 3) else tokenizer.id_to_piece(token).replace("▁", " ") for token in ids
    ]
    assert words == [
        {"word": word.word, "start": word.start, "end": word.end} for word in words_of(pieces)
    ]
    assert len(words) > 5


@pytest.mark.parametrize(("suffix", "rate", "channels"), [("flac", 44_100, 2), ("ogg", 8_000, 1)])
def test_output_is_as_long_as_any_input(
    tmp_path: Path, suffix: str, rate: int, channels: int
) -> None:
    caller = tmp_path / f"caller.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (rate // 2 + 1, channels))
    soundfile.write(caller, noise, rate)
    assert main(offline(caller, tmp_path)) == 0
    length = soundfile.info(tmp_path / "out.wav").frames
    assert length == len(read_audio(caller))
    assert abs(length - len(noise) * SAMPLE_RATE / rate) <= 1
    assert tokens(tmp_path)["text_tokens"].shape == (-(-length // FRAME_SAMPLES),)


def test_only_the_requested_files_are_written(callers: Path, tmp_path: Path) -> None:
    arguments = ["offline", "--model", str(CHECKPOINT), "--voice", "NATM1"]
    arguments += ["--input", str(callers / "short.wav"), "--output", str(tmp_path / "out.wav")]
    assert main(arguments) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.wav"]
    assert soundfile.info(tmp_path / "out.wav").frames == 5 * FRAME_SAMPLES + 1


def test_seed_repeats_a_sampled_conversation(callers: Path, tmp_path: Path) -> None:
    results = []
    for seed in ("1", "1", "2"):
        arguments = offline(callers / "short.wav", tmp_path, "--seed", seed, greedy=False)
        assert main(arguments) == 0
        results.append(tokens(tmp_path))
    assert_same_tokens(results[0], results[1])
    assert not np.array_equal(results[0]["agent_codes"], results[2]["agent_codes"])


@pytest.mark.parametrize(("option", "value"), [("temperature", "0"), ("top-k", "1")])
def test_temperature_0_and_top_k_1_are_greedy(
    callers: Path, tmp_path: Path, option: str, value: str
) -> None:
    assert main(offline(callers / "short.wav", tmp_path)) == 0
    expected = tokens(tmp_path)
    options = [f"--{option}-audio", value, f"--{option}-text", value]
    assert main(offline(callers / "short.wav", tmp_path, *options, greedy=False)) == 0
    assert_same_tokens(tokens(tmp_path), expected)


def test_options_and_environment_reach_the_engine(
    callers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, EngineConfig]] = []

    def load(model: str, config: EngineConfig, **kwargs: object) -> Engine:
        loaded.append((model, config))
        raise SessionFailed("the test ends here")

    monkeypatch.setattr(Engine, "load", load)
    monkeypatch.setenv("PERSONAPLEX_MODEL", str(CHECKPOINT))
    monkeypatch.setenv("PERSONAPLEX_DEVICE", "cuda:1")
    arguments = ["offline", "--voice", "NATM1", "--input", str(callers / "short.wav")]
    arguments += ["--output", str(tmp_path / "out.wav"), "--dtype", "bfloat16"]
    assert main([*arguments, "--quantization", "int8", "--threads", "3", "--no-cuda-graphs"]) == 1
    ((model, config),) = loaded
    assert (model, config.device, config.dtype) == (str(CHECKPOINT), "cuda:1", "bfloat16")
    assert (config.quantization, config.cpu_threads, config.max_sessions) == ("int8", 3, 1)
    assert not config.cuda_graphs

    loaded.clear()
    monkeypatch.setenv("PERSONAPLEX_DEVICE", "")  # The same as an unset variable.
    monkeypatch.setenv("PERSONAPLEX_QUANTIZATION", "int4")
    monkeypatch.setenv("PERSONAPLEX_KV_DTYPE", "fp8")
    monkeypatch.setenv("PERSONAPLEX_CONTEXT", "500")
    assert main([*arguments, "--quantization", "int8"]) == 1
    ((_, config),) = loaded
    assert (config.device, config.quantization) == ("auto", "int8")
    assert (config.kv_dtype, config.context) == ("fp8", 500)


@pytest.mark.parametrize(
    ("variable", "value"), [("CONTEXT", "far"), ("KV_DTYPE", "int8"), ("QUANTIZATION", "int3")]
)
def test_mistake_in_the_environment_names_its_variable(
    callers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(f"PERSONAPLEX_{variable}", value)
    assert main(offline(callers / "short.wav", tmp_path)) == 2
    error = one_line(capsys.readouterr().err)
    assert f"PERSONAPLEX_{variable}" in error


def test_default_voice_and_both_names_of_the_prompt_option(callers: Path, tmp_path: Path) -> None:
    arguments = ["offline", "--model", str(CHECKPOINT), "--input", str(callers / "short.wav")]
    for name, more in (("one", ["--prompt", "Hi."]), ("two", ["--text-prompt", "Hi."])):
        text = tmp_path / f"{name}.json"
        output = str(tmp_path / f"{name}.wav")
        assert main([*arguments, "-o", output, "--output-text", str(text), *more]) == 0
        written = json.loads(text.read_text(encoding="utf-8"))
        assert (written["voice"], written["text_prompt"]) == ("NATF2", "Hi.")
    assert (tmp_path / "one.wav").read_bytes() == (tmp_path / "two.wav").read_bytes()


def test_voice_is_looked_up_before_the_model_is_loaded(
    callers: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*args: object, **kwargs: object) -> Engine:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "load", load)
    assert main(offline(callers / "short.wav", tmp_path, voice="NATX9")) == 2
    assert "'NATX9' is unknown" in one_line(capsys.readouterr().err)


def test_output_that_is_a_link_stays_a_link(callers: Path, tmp_path: Path) -> None:
    (tmp_path / "out.wav").symlink_to("real.wav")
    assert main(offline(callers / "short.wav", tmp_path)) == 0
    assert os.readlink(tmp_path / "out.wav") == "real.wav"
    assert soundfile.info(tmp_path / "real.wav").frames == 5 * FRAME_SAMPLES + 1


def test_both_speakers_in_one_file(callers: Path, tmp_path: Path) -> None:
    stereo = tmp_path / "both.wav"
    assert main(offline(callers / "short.wav", tmp_path, "--output-stereo", stereo)) == 0
    both, rate = soundfile.read(stereo)
    caller, agent = (
        soundfile.read(callers / "short.wav")[0],
        soundfile.read(tmp_path / "out.wav")[0],
    )
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(both, np.stack([caller, agent], axis=1), atol=2**-15)


def test_both_speakers_only_as_wav(
    callers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = offline(callers / "short.wav", tmp_path, "--output-stereo", tmp_path / "both.mp3")
    assert main(arguments) == 2
    assert "--output-stereo" in one_line(capsys.readouterr().err)
