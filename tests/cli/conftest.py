from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from tests.golden_data import conversation
from tests.helpers.logs import logging_restored


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "DEVICE", "QUANTIZATION", "KV_DTYPE", "CONTEXT", "MAX_SESSIONS"):
        monkeypatch.delenv(f"PERSONAPLEX_{name}", raising=False)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    with logging_restored():
        yield


@pytest.fixture(scope="session")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two golden callers, and a short one of odd length, as WAV files."""
    folder = tmp_path_factory.mktemp("callers")
    for name in ("restaurant", "friend"):
        pcm = conversation(name).user_pcm
        soundfile.write(folder / f"{name}.wav", pcm, SAMPLE_RATE, subtype="PCM_16")
    short = conversation("friend").user_pcm[: 5 * FRAME_SAMPLES + 1]
    soundfile.write(folder / "short.wav", short, SAMPLE_RATE, subtype="PCM_16")
    return folder
