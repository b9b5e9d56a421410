"""The agent's clips as a finished checkpoint says them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipecat_personaplex import Engine, EngineConfig, Persona
from pipecat_personaplex.constants import TEXT_PAD
from training.nano import rehearse as rehearsal
from training.nano import script
from training.nano.adopt import adopt
from training.nano.agent_speech import single_texts
from training.nano.pool import AgentClip, Pool
from training.nano.progress import NotSaid
from training.nano.rehearse import rehearse, say_all
from training.nano.tracks import word_tokens

NANO = Path("pipecat_personaplex/nano")
TEACHER = Persona("NATF2", "You are a friendly teacher and your name is Owen.")


def test_nano_says_lines_and_words_one_after_the_other() -> None:
    texts = ["You can call me Owen.", "summer", "You can call me Owen.", "Uh-huh."]
    with Engine.load(NANO, EngineConfig(device="cpu", max_sessions=2)) as engine:
        first, summer, again, listening = say_all(engine, TEACHER, texts)
        assert [clip.text for clip in (first, summer, again, listening)] == texts
        silence = torch.tensor(engine.checkpoint.config.silence_codes)
        for clip in (first, summer, again, listening):
            assert clip.codes.dtype == torch.int16 and clip.codes.shape[1] == 8
            for end in (0, -1):
                assert not torch.equal(clip.codes[end].long(), silence), "no silence around it"
        assert first.onsets[0] == 0 and first.onsets == sorted(set(first.onsets))
        assert 12 < len(first.codes) < 40 and first.onsets[-1] < len(first.codes)
        assert len(summer.codes) < 15
        same = (first.codes[:12] == again.codes[:12]).float().mean()
        assert same > 0.9, "it knows the line by heart"
        # What the training makes of the clip is the text that the model was given.
        words, _ = word_tokens(first, engine.checkpoint.tokenizer)
        pieces = [token for token in words if token > TEXT_PAD]
        assert engine.checkpoint.tokenizer.decode(pieces) == first.text
        assert words[0] > TEXT_PAD


def test_a_text_that_is_not_said_in_full_is_refused() -> None:
    with Engine.load(NANO, EngineConfig(device="cpu", max_sessions=2)) as engine:
        with pytest.raises(NotSaid, match=r"of 'Goodbye -- Owen\.', 2 words were said"):
            say_all(engine, TEACHER, ["Goodbye -- Owen."])
        say_all(engine, TEACHER, ["Uh-huh."])  # the call of the refused one has ended


def test_a_pool_of_what_a_checkpoint_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def said(engine: Engine, persona: Persona, texts: list[str]) -> list[AgentClip]:
        asked.extend((persona.voice, text) for text in texts)
        codes = torch.zeros(40, 8, dtype=torch.int16)
        return [AgentClip(text, codes, list(range(len(text.split())))) for text in texts]

    monkeypatch.setattr(rehearsal, "say_all", said)
    monkeypatch.setattr(rehearsal, "voice_prompts", lambda *_: {"NATF2": [], "NATM1": []})
    adopt(NANO, tmp_path)
    rehearse(NANO, tmp_path)
    pool = Pool.load(tmp_path)
    for voice in ("NATF2", "NATM1"):
        assert pool.agent[voice].keys() == script.all_lines().keys()
        assert pool.words[voice].keys() == single_texts().keys()
    assert len(asked) == len(set(asked)) + 2 * sum(
        text in script.all_lines() for text in single_texts().values()
    )
    assert pool.agent["NATM1"]["My name is Owen."].copied == [3]
    assert pool.words["NATF2"]["owen"].text == "Owen."
    assert len(pool.silence) == len(pool.sine) == 8
    with pytest.raises(FileExistsError, match=r"pool\.pt exists; delete it first"):
        rehearse(NANO, tmp_path)
