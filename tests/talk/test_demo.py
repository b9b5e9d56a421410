"""The film of the demonstration: pictures and sound at their times."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.talk.demo import FRAMES_A_SECOND, SIZE, write_film

RATE = 48_000


def picture(level: int) -> bytes:
    """A grey JPEG."""
    content = io.BytesIO()
    Image.new("RGB", (SIZE["width"], SIZE["height"]), (level,) * 3).save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_pictures_and_sound_keep_their_times(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"demo.{suffix}"
    start = 1_000_000_000.0  # of the wall clock
    pictures = [(start, picture(20)), (start + 1.0, picture(220))]
    sound = np.zeros((RATE, 2), dtype=np.float32)
    sound[RATE // 2 :, 1] = 0.3 * np.sin(np.arange(RATE // 2) * 440 * 2 * np.pi / RATE)
    write_film(path, pictures, sound, start + 0.25)

    with av.open(str(path)) as film:
        levels = [frame.to_ndarray(format="rgb24").mean() for frame in film.decode(video=0)]
    bright = [level > 120 for level in levels]
    assert abs(levels[0] - 20) < 4 and abs(levels[-1] - 220) < 4
    assert bright.index(True) == FRAMES_A_SECOND and all(bright[FRAMES_A_SECOND:])
    with av.open(str(path)) as film:
        heard = np.concatenate([frame.to_ndarray() for frame in film.decode(audio=0)], axis=1)
    onset = np.flatnonzero(np.abs(heard[1]) > 0.1)[0] / RATE
    assert abs(onset - 0.75) < 0.05
    assert np.abs(heard[0]).max() < 0.05
