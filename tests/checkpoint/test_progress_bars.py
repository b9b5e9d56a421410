"""Progress bars of downloads and of loading."""

from __future__ import annotations

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint.progress_bars import download_bars, loading_bar
from tests.golden_data import CHECKPOINT

CONFIG = EngineConfig(device="cpu", max_sessions=1)


def test_an_engine_draws_a_bar_while_it_loads(capsys: pytest.CaptureFixture[str]) -> None:
    Engine.load(CHECKPOINT, CONFIG, progress=True)
    drawn = capsys.readouterr().err
    assert "\rloading the model: " in drawn and " weights" in drawn


def test_an_engine_draws_no_bar_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    Engine.load(CHECKPOINT, CONFIG)
    assert "\r" not in capsys.readouterr().err


def test_a_bar_that_is_not_shown_has_no_callback() -> None:
    with loading_bar(shown=False) as progress:
        assert progress is None


@pytest.mark.parametrize("shown", [True, False])
def test_the_hub_clients_bars_are_disabled_only_in_the_block(shown: bool) -> None:
    before = are_progress_bars_disabled()
    with download_bars(shown):
        assert are_progress_bars_disabled() == (before or not shown)
    assert are_progress_bars_disabled() == before
