"""The high-pass before the codec: its frequency response, its state, and independent rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from pipecat_personaplex.config import EngineConfig
from pipecat_personaplex.constants import FRAME_SAMPLES, SAMPLE_RATE
from pipecat_personaplex.errors import ConfigError
from pipecat_personaplex.models.config import ModelConfig
from pipecat_personaplex.models.mimi.dc_blocker import CUTOFF_HZ, DcBlocker

CPU = torch.device("cpu")
FRAMES = 12


def stream(pcm: torch.Tensor) -> torch.Tensor:
    """Filter streams [B, frames * 1920] frame by frame."""
    blocker = DcBlocker(len(pcm), CPU)
    rows = slice(0, len(pcm))
    return torch.cat([blocker(frame, rows) for frame in pcm.split(FRAME_SAMPLES, dim=1)], dim=1)


def test_equals_a_filter_of_the_first_order() -> None:
    pcm = torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, (2, FRAMES * FRAME_SAMPLES)).astype(np.float32)
    )
    keep = np.exp(-2 * np.pi * CUTOFF_HZ / SAMPLE_RATE)
    expected = lfilter([keep, -keep], [1, -keep], pcm.double().numpy(), axis=1)
    assert np.abs(stream(pcm).numpy() - expected).max() < 1e-5


def test_removes_an_offset_and_passes_speech() -> None:
    time = torch.arange(FRAMES * FRAME_SAMPLES) / SAMPLE_RATE
    voice = 0.2 * torch.sin(2 * torch.pi * 200 * time)
    rumble = 0.2 * torch.sin(2 * torch.pi * CUTOFF_HZ * time)
    filtered = stream(torch.stack([torch.full_like(time, 0.5), voice, rumble]))
    offset, passed, cut = filtered[:, FRAME_SAMPLES:].square().mean(dim=1).sqrt().tolist()
    assert offset < 1e-5
    assert passed == pytest.approx(0.2 * 0.5**0.5, rel=0.01)
    assert cut == pytest.approx(0.2 * 0.5, rel=0.02)  # -3 dB


def test_rows_do_not_depend_on_each_other() -> None:
    pcm = torch.randn(5, 2 * FRAME_SAMPLES, generator=torch.Generator().manual_seed(0))
    together = stream(pcm)
    for row in range(5):
        assert torch.equal(stream(pcm[row : row + 1])[0], together[row])
    # Rows of a gathered batch use and update the state of their own slots.
    blocker = DcBlocker(6, CPU)
    slots = torch.tensor([4, 1])
    for frame in pcm[:2].split(FRAME_SAMPLES, dim=1):
        last = blocker(frame, slots)
    assert torch.equal(last, together[:2, FRAME_SAMPLES:])
    assert not blocker.means[[0, 2, 3, 5]].any()


def test_the_checkpoint_decides_unless_the_engine_is_configured() -> None:
    release, nano = ModelConfig.from_dict({}), ModelConfig.from_dict({"dc_blocker": True})
    for given, expected in ((None, (False, True)), (True, (True, True)), (False, (False, False))):
        options = EngineConfig(dc_blocker=given)
        found = tuple(model.with_options(options).dc_blocker for model in (release, nano))
        assert found == expected


def test_other_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="dc_blocker must be true, false or none, not 1"):
        EngineConfig(dc_blocker=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"top-level\.dc_blocker must be bool: 'yes'"):
        ModelConfig.from_dict({"dc_blocker": "yes"})
