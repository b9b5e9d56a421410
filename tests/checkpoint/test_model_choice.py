"""Which model a machine runs where nobody says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi

from pipecat_personaplex import Engine, EngineConfig
from pipecat_personaplex.checkpoint import hub as choice
from pipecat_personaplex.checkpoint.hub import RELEASE, resolve_model
from tests.helpers.hub import FakeHub

Hub = Callable[[str], None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Where the Hub is, for a machine with a card and nothing in the Hub's cache."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(choice, "try_to_load_from_cache", lambda repo, file: None)

    def at(url: str) -> None:
        monkeypatch.setattr(choice, "HfApi", lambda: HfApi(endpoint=url, token=False))

    at("http://127.0.0.1:1")
    return at


def reason(device: str = "auto") -> str:
    model, note = resolve_model("auto", device)
    assert model == "nano" and note is not None and "\n" not in note
    assert note.startswith("model: nano, a small demonstration (")
    return note


def test_what_is_asked_for_is_what_it_is(hub: Hub) -> None:
    for model in ("nano", "some/where", "./auto", "random-1b"):
        assert resolve_model(model, "auto") == (model, None)


def test_without_a_gpu_it_is_nano_and_said_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "no CUDA GPU" in reason()


def test_with_a_gpu_and_access_it_is_the_release(hub: Hub) -> None:
    with FakeHub(RELEASE, {}) as server:
        hub(server.url)
        assert resolve_model("auto", "auto") == (RELEASE, f"model: {RELEASE}")


def test_what_is_in_the_cache_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "try_to_load_from_cache", lambda repo, file: "/cache/x")
    assert resolve_model("auto", "auto")[0] == RELEASE


def test_a_gpu_that_is_not_to_be_used_is_not_denied(hub: Hub) -> None:
    said = reason("cpu")
    assert "the device is to be the CPU" in said and "no CUDA GPU" not in said


@pytest.mark.parametrize(
    ("refusal", "way"),
    [
        ((403, {"X-Error-Code": "GatedRepo"}), "accept its licence at https://huggingface.co/nv"),
        ((401, {}), "hf auth login"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "check the spelling"),
        ((400, {}), "the Hub answered 400"),
    ],
)
def test_without_access_the_way_to_it_is_shown(
    hub: Hub, refusal: tuple[int, dict[str, str]], way: str
) -> None:
    with FakeHub(RELEASE, {}, refusal=refusal) as server:
        hub(server.url)
        assert way in reason()


def test_without_a_network_it_is_not_the_licence(hub: Hub) -> None:
    said = reason()
    assert "cannot be reached" in said and "licence" not in said


def test_an_engine_chooses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(device="cpu", max_sessions=1)
    assert Engine.load("auto", config).voices == Engine.load("nano", config).voices
