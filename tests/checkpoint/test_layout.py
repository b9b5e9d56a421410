"""The layout names the tensors of the released 7B, with their shapes."""

from __future__ import annotations

import json
import re

import torch

from pipecat_personaplex.checkpoint.layout import lm_layout, mimi_layout, unknown_tensor
from pipecat_personaplex.models.config import LMConfig, MimiConfig
from pipecat_personaplex.models.lm import PersonaPlexLM
from pipecat_personaplex.models.mimi.codec import Mimi
from tests.golden_data import GOLDEN


def test_the_layout_is_that_of_the_released_7b() -> None:
    architecture = json.loads((GOLDEN / "architecture_7b.json").read_text())
    with torch.device("meta"):
        lm, mimi = PersonaPlexLM(LMConfig()), Mimi(MimiConfig())
    for layout, tensors in (
        (lm_layout(lm, 16), architecture["lm"]),
        (mimi_layout(mimi), architecture["mimi"]),
    ):
        for entry in layout:
            assert tuple(tensors[entry.name]) == entry.shape, entry.name
            if entry.usage is not None:
                assert tensors[entry.usage] == [entry.shape[0]], entry.usage
        assert unknown_tensor(layout, tensors) is None
    # The depth steps that predict the user's codes are not read.
    for entry in lm_layout(lm, 16):
        assert not re.search(r"(_in|_emb|linears|gating)\.(8|9|1\d)\.", entry.name) or (
            entry.name.startswith("emb.")
        )
        if "depformer" in entry.name and entry.rows is not None:
            assert entry.rows[1] <= entry.shape[0] // 2
