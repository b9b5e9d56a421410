"""Which model a machine runs where nobody says."""

from __future__ import annotations

import pytest

from pipecat_personaplex.engine import choice
from pipecat_personaplex.engine.choice import RELEASE, choose_model


def machine(monkeypatch: pytest.MonkeyPatch, *, gpu: bool, access: bool = False) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(choice, "_accessible", lambda repo: access)


def test_without_a_gpu_it_is_nano_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu=False, access=True)
    model, note = choose_model("auto")
    assert model == "nano"
    assert "no CUDA GPU" in note and "small demonstration" in note


def test_with_a_gpu_and_access_it_is_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu=True, access=True)
    assert choose_model("auto") == (RELEASE, f"model: {RELEASE}")
    assert choose_model("cpu")[0] == "nano"


def test_without_access_the_way_to_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu=True)
    model, note = choose_model("auto")
    assert model == "nano"
    assert "licence" in note and "hf auth login" in note
