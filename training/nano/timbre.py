"""Other speakers from recordings of one: pitch and formants, changed with the vocoder WORLD."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from pipecat_personaplex.constants import SAMPLE_RATE
from training.nano.espeak import Pcm

_PITCHES = (0.72, 1.4)
_FORMANTS = (0.84, 1.2)


@cache
def _world() -> ModuleType:
    """The compiled part of pyworld; its package needs a module that setuptools 82 has removed."""
    package = importlib.util.find_spec("pyworld")
    if package is None or package.origin is None:
        raise RuntimeError("pyworld is not installed: pip install -e '.[training]'")
    (path,) = Path(package.origin).parent.glob("pyworld.*.so")
    spec = importlib.util.spec_from_file_location("pyworld.pyworld", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def change_timbre(pcm: Pcm, pitch: float, formants: float) -> Pcm:
    """Change the pitch and the length of the vocal tract; the duration stays.

    Args:
        pcm: Speech.
        pitch: Factor on the fundamental frequency.
        formants: Factor on the frequencies of the formants.

    Returns:
        As many samples. ``pcm`` itself if WORLD returns NaN: it uses random noise, and that
        happened once in about 5,000 recordings.
    """
    world = _world()
    samples = pcm.astype(np.float64)
    rough, times = world.dio(samples, SAMPLE_RATE)
    f0 = world.stonemask(samples, rough, times, SAMPLE_RATE)
    envelope = world.cheaptrick(samples, f0, times, SAMPLE_RATE)
    aperiodicity = world.d4c(samples, f0, times, SAMPLE_RATE)
    bins = np.arange(envelope.shape[1])
    source = np.minimum(bins / formants, bins[-1])
    low = source.astype(int)
    high = np.minimum(low + 1, bins[-1])
    share = source - low
    logs = np.log(envelope)
    warped = np.exp((1 - share) * logs[:, low] + share * logs[:, high])
    result = world.synthesize(f0 * pitch, np.ascontiguousarray(warped), aperiodicity, SAMPLE_RATE)
    if not np.isfinite(result).all():
        return pcm
    changed = np.zeros(len(pcm), np.float32)
    changed[: len(result)] = result[: len(pcm)]
    return changed


def sample_timbre(pcm: Pcm, random: np.random.Generator) -> Pcm:
    """Change pitch and formants by random factors."""
    low, high = np.log(_PITCHES)
    return change_timbre(
        pcm, float(np.exp(random.uniform(low, high))), float(random.uniform(*_FORMANTS))
    )
