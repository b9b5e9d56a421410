"""The voices of a model that runs in the bot's process."""

from __future__ import annotations

import pytest

from bots.engines import load_engine
from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.errors import VoiceNotFound
from tests.golden_data import CHECKPOINT, VOICE_SAMPLE

CONFIG = EngineConfig(device="cpu", max_sessions=1)


def test_an_unknown_voice_is_refused_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*args: object, **kwargs: object) -> Engine:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Engine, "load", load)
    with pytest.raises(VoiceNotFound, match="'NATX9'"):
        load_engine(str(CHECKPOINT), CONFIG, "NATX9", [])


def test_an_added_voice_may_be_chosen() -> None:
    engine = load_engine(str(CHECKPOINT), CONFIG, "owen", [("owen", VOICE_SAMPLE)])
    assert engine.voices == ["NATF2", "NATM1", "owen"]
