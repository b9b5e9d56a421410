"""Writes a run in Full-Duplex-Bench's layout, so that its own scripts can score the same calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pipecat_personaplex.audio_files import write_wav
from pipecat_personaplex.eval.run_files import write_json
from pipecat_personaplex.eval.run_folder import Call, RunFolder
from pipecat_personaplex.eval.transcribers import chunks_of
from pipecat_personaplex.words import Word

SUITES = ("fdb-v1", "fdb-v1.5")
_CLEAN = ".clean"


def write_layout(run: RunFolder, name: str, transcripts: Sequence[tuple[Call, list[Word]]]) -> Path:
    """Write ``fdb/NAME/SEED/TASK/ID/`` with ``output.wav``, ``output.json`` and annotations.

    Annotations and the caller's audio are links to the data, not copies.

    Args:
        run: A run of one of ``SUITES``.
        name: Who transcribed.
        transcripts: Every call and its words.

    Returns:
        The folder ``fdb/NAME``.
    """
    root = run.path / "fdb" / name
    for call, words in transcripts:
        item, clean = call.id.removesuffix(_CLEAN), call.id.endswith(_CLEAN)
        folder = root / str(call.seed) / item
        folder.mkdir(parents=True, exist_ok=True)
        prefix = "clean_" if clean else ""
        write_wav(folder / f"{prefix}output.wav", run.audio(call))
        write_json(folder / f"{prefix}output.json", chunks_of(words))
        for original in sorted(Path(call.source).glob("*")):
            link = folder / original.name
            if not os.path.lexists(link) and not original.name.startswith(
                ("output", "clean_output")
            ):
                link.symlink_to(original)
    return root
