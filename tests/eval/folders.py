"""Folders in the layouts of the benchmarks, with generated recordings instead of their data.

And a small run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from pipecat_personaplex.audio import Pcm
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.eval.items import Event, Item
from pipecat_personaplex.eval.run_folder import Call, RunFolder
from pipecat_personaplex.eval.suites.nano_calls import caller_voices
from pipecat_personaplex.words import Word

CLIPS = [clip.pcm for clip in caller_voices(bundled=True).scene(0).questions]
_SETTINGS = {
    **{"suite": "folder", "title": "calls", "items": 1, "data_sha256": "0" * 16, "seeds": [0]},
    **{"voice": "NATF2", "sampling": {"top_k": 1}, "model": "nano", "checkpoint_sha256": "1" * 16},
    **{"dtype": "float32", "quantization": None, "commit": None, "version": "1"},
    "machine": {"device": "cpu"},
}


def recording(*clips: Pcm, lead: float = 0.3, gap: float = 0.6, tail: float = 2.0) -> Pcm:
    parts = [silence(lead)]
    for clip in clips:
        parts += [clip, silence(gap)]
    return np.concatenate([*parts[:-1], silence(tail)])


def silence(seconds: float) -> Pcm:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def write(
    folder: Path, pcm: Pcm, name: str = "input.wav", rate: int = 16_000, **files: Any
) -> None:
    """Write a recording at the benchmark's sample rate, and JSON files beside it."""
    import soxr

    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / name, soxr.resample(pcm, SAMPLE_RATE, rate), rate, subtype="PCM_16")
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))


def fdb_v1(root: Path) -> Path:
    """One item of each task of Full-Duplex-Bench v1."""
    first, second = CLIPS[0], CLIPS[1]
    end = 0.3 + len(first) / SAMPLE_RATE
    pause = [{"text": "[PAUSE]", "timestamp": [end, end + 0.6]}]
    folder = root / "v1.0"
    write(folder / "synthetic_pause_handling" / "7", recording(first, second), pause=pause)
    write(folder / "candor_pause_handling" / "0", recording(first, second), pause=pause)
    write(
        folder / "candor_turn_taking" / "3",
        recording(first),
        turn_taking=[{"text": "[TURN-TAKING]", "timestamp": [end, end + 0.2]}],
    )
    write(folder / "icc_backchannel" / "12", recording(first, second, gap=0.1, tail=0.2))
    (folder / "icc_backchannel" / "icc_gt_distribution.json").write_text(
        json.dumps({"12": [0.0] * 10 + [1.0] * 5})
    )
    start = end + 1.0
    stop = start + len(second) / SAMPLE_RATE
    write(
        folder / "synthetic_user_interruption" / "1",
        recording(first, second, gap=1.0, tail=2.5),
        interrupt=[{"context": "a", "interrupt": "How many planets?", "timestamp": [start, stop]}],
    )
    return root


def fdb_v15(root: Path) -> Path:
    for number, task in enumerate(
        ("user_interruption", "user_backchannel", "talking_to_other", "background_speech")
    ):
        folder = root / "v1.5" / task / str(number)
        metadata = {"context_text": "x", "event_text": "hold on", "timestamps": [2.0, 2.5]}
        write(folder, silence(4.0), metadata=metadata)
        write(folder, silence(3.0), name="clean_input.wav")
    return root


def humdial(root: Path) -> Path:
    folder = root / "test" / "en_test_nondev"
    segments = [
        {"xmin": 0.5, "xmax": 2.0, "text": "What is this?"},
        {"xmin": 6.0, "xmax": 7.0, "text": "wait, another question"},
        {"xmin": 8.0, "xmax": 8.5, "text": "put it there, Tom"},
    ]
    for category, count in (("ask", 2), ("talk_to_others", 3), ("backchannel", 2)):
        content = {"speech_segments": segments[:count], "final_duration": 10.0}
        (folder / category).mkdir(parents=True)
        write(folder / category, silence(10.0), name="s1_1.wav", s1_1=content)
        write(folder / category, silence(10.0), name="clean_s1_1.wav")
    words = [[0.5, 0.9], [1.0, 1.2], [1.7, 2.0]]
    write(
        folder / "pause",
        silence(4.0),
        name="s1_2.wav",
        s1_2={"speech_segments": [{"xmin": 0.5, "xmax": 2.0, "text": "I need [break] help"}]},
        s1_2_timestamp={"chunks": [{"text": "w", "timestamp": each} for each in words]},
    )
    return root


def small_run(path: Path, group: str = "g") -> RunFolder:
    """A run of one call, ``x``, with an interruption at 1 s, answered at 2 s."""
    run = RunFolder.create(path, _SETTINGS)
    add_call(run, "x", group)
    return run


def add_call(run: RunFolder, name: str, group: str = "g") -> None:
    item = Item(name, group, silence(5), (Event("interruption", 1.0, 1.5, "stop"),))
    words = [Word(f"w{index}", 2 + index / 2, 2.4 + index / 2) for index in range(4)]
    run.add(Call.of(item, 0), silence(5), words)
