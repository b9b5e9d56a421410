"""Training resumes from its states, and the engine loads the exported checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from pipecat_personaplex.checkpoint.loader import load_checkpoint
from pipecat_personaplex.constants import SAMPLE_RATE
from pipecat_personaplex.models.linear import PackedLinear
from tests.golden_data import CHECKPOINT
from tests.helpers.checkpoints import weight_of
from tests.training.models import CONFIG, random_codec, random_pool, save_pool
from tests.training.together import run_together
from training.nano import lm as lm_training
from training.nano.adopt import adopt
from training.nano.caller_embedding import CallerEmbedding, centroid_features
from training.nano.codec import load_finished, new_codec
from training.nano.decoder import DecoderRun, load_agent_codec, train_decoder
from training.nano.dialogues import DialogueWriter
from training.nano.export import TEXT_HEAD, TEXT_SHARPNESS, write_models
from training.nano.parallel_lm import new_lm
from training.nano.pool import Pool, callers_file, save_callers
from training.nano.progress import Clock, StateMissing, load_state, save_state
from training.nano.voices import AGENT_VOICES

TOKENIZER = CHECKPOINT / "tokenizer_spm_32k_3.model"


def test_a_pool_is_saved_and_loaded(tmp_path: Path) -> None:
    pool = random_pool()
    save_pool(pool, tmp_path)
    loaded = Pool.load(tmp_path)
    assert loaded.silence == pool.silence
    ours, theirs = loaded.callers[1].clips["menu"][0], pool.callers[1].clips["menu"][0]
    assert torch.equal(ours.codes, theirs.codes)
    assert ours.word_ends == theirs.word_ends
    sentence = "You are welcome."
    assert loaded.agent["NATM1"][sentence].onsets == pool.agent["NATM1"][sentence].onsets
    assert loaded.agent["NATM1"]["My name is Owen."].copied == [3]
    assert loaded.words["NATF2"]["minutes"].text == "minutes."
    older = load_state(tmp_path / "pool.pt")
    del older["format"], older["words"]
    save_state(tmp_path / "pool.pt", older)
    with pytest.raises(StateMissing, match=r"pool\.pt is of an older recipe"):
        Pool.load(tmp_path)


def test_callers_that_are_made_later_join_the_pool(tmp_path: Path) -> None:
    pool = random_pool()
    save_pool(pool, tmp_path)
    loaded = Pool.load(tmp_path)
    loaded.read_new_callers(tmp_path)
    assert len(loaded.callers) == len(pool.callers)
    save_callers(callers_file(tmp_path, 1), pool.callers[:1])
    loaded.read_new_callers(tmp_path)
    assert len(loaded.callers) == len(pool.callers) + 1


def test_pauses_do_not_count_as_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("training.nano.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = Clock(budget=60)
    now[0] = 2.0
    clock.tick()
    now[0] = 3602.0  # paused for an hour
    clock.tick()
    assert clock.spent < 20
    assert not clock.done
    assert clock.rate_factor(0) < clock.rate_factor(50)


def test_an_interrupted_write_leaves_the_previous_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def fail(state: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("training.nano.progress.torch.save", fail)
    with pytest.raises(OSError, match="full"):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}


def cache_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns the first result of another function, for all arguments."""
    results: list[Any] = []

    def cached(*args: Any) -> Any:
        if not results:
            results.append(function(*args))
        return results[0]

    return cached


@pytest.fixture
def clips_folder(tmp_path: Path) -> Path:
    """A folder in which ``lm`` can start: a pool with callers, and a tokenizer."""
    save_pool(random_pool(), tmp_path)
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.model")
    return tmp_path


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training makes a small language model behind a small codec."""
    monkeypatch.setattr(lm_training, "LM_CONFIG", CONFIG.lm)
    monkeypatch.setattr(lm_training, "MIMI_CONFIG", CONFIG.mimi)
    monkeypatch.setattr(lm_training, "load_codec", random_codec)


@pytest.mark.usefixtures("small_models", "seconds_of_steps")
def test_lm_training_resumes(clips_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every step trains on the first batch, so that the losses of the steps can be compared.
    monkeypatch.setattr(lm_training, "_sample_batch", cache_first(lm_training._sample_batch))
    monkeypatch.setattr(lm_training, "_LOG_EVERY", 1)

    def train(seconds: int) -> dict[str, Any]:
        run = lm_training.LMRun(minutes=seconds / 60, batch=1, length=300, peak_rate=0.02)
        lm_training.train_lm(clips_folder, run, torch.device("cpu"))
        return load_state(clips_folder / "lm.pt")

    first = train(12)
    assert first["step"] == 12
    second = train(20)
    assert second["step"] == 20
    moments = next(iter(second["optimizer"]["state"].values()))
    assert moments["step"] == 20, "the optimizer resumed too"
    assert train(20)["step"] == 20, "the budget is spent"
    rows = [json.loads(line) for line in (clips_folder / "lm.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    losses = [row["loss"] for row in rows]
    assert losses[11] < 0.95 * losses[0]
    assert losses[19] < 0.95 * losses[11], "the resumed run continues from the trained weights"


@pytest.mark.usefixtures("small_models", "seconds_of_steps")
def test_listening_gives_way_to_answers(
    clips_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    listening = DialogueWriter.listening

    def counted(writer: DialogueWriter, *args: Any) -> Any:
        heard[-1] += 1
        return listening(writer, *args)

    sample = lm_training._sample_batch

    def sampled(*args: Any) -> Any:
        heard.append(0)
        return sample(*args)

    monkeypatch.setattr(DialogueWriter, "listening", counted)
    monkeypatch.setattr(lm_training, "_sample_batch", sampled)
    run = lm_training.LMRun(minutes=4 / 60, batch=3, length=300, listening_share=0.9)
    lm_training.train_lm(clips_folder, run, torch.device("cpu"))
    assert heard == [2, 2, 1, 0], "never the whole batch"


@pytest.mark.usefixtures("small_models")
def test_callers_outside_the_training_measure_it(tmp_path: Path) -> None:
    pool = random_pool()
    save_pool(pool, tmp_path)
    save_callers(callers_file(tmp_path, 15), pool.callers[:1])
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.model")
    loaded = Pool.load(tmp_path)
    assert (len(loaded.callers), len(loaded.unseen)) == (len(pool.callers), 1)
    run = lm_training.LMRun(minutes=1e-4, batch=1, length=300)
    lm_training.train_lm(tmp_path, run, torch.device("cpu"))
    (row,) = [json.loads(line) for line in (tmp_path / "lm.jsonl").read_text().splitlines()]
    assert row["step"] == 1 and 0 <= row["unseen_word_right"] < 0.5


@pytest.mark.usefixtures("small_models")
def test_training_starts_anew_from_a_state_without_embeddings_of_callers(
    clips_folder: Path,
) -> None:
    run = lm_training.LMRun(minutes=1e-4, batch=1, length=300)
    lm_training.train_lm(clips_folder, run, torch.device("cpu"))
    state = load_state(clips_folder / "lm.pt")
    older = {name: part for name, part in state["parts"].items() if "callers" not in name}
    save_state(clips_folder / "lm.pt", state | {"parts": older, "step": 70})
    lm_training.train_lm(clips_folder, run, torch.device("cpu"))
    state = load_state(clips_folder / "lm.pt")
    assert state["step"] == 1 and "callers.linear" in state["parts"]


def test_the_callers_embedding_is_part_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lm = new_lm(CONFIG.lm)
    callers = CallerEmbedding(centroid_features(random_codec()), CONFIG.lm.dim)
    parts = nn.ModuleDict({"lm": lm, "callers": callers})
    save_state(tmp_path / "lm.pt", {"parts": parts.state_dict()})
    loaded = lm_training.load_lm(tmp_path / "lm.pt", CONFIG)
    callers.write(lm)
    assert torch.equal(loaded.audio_emb.weight, lm.audio_emb.weight)


AVERAGING = """
import torch

from training.nano.processes import average, process_group
from training.nano.progress import Clock

with process_group() as (rank, count):
    parts = torch.nn.Linear(3, 2)
    for parameter in parts.parameters():
        parameter.grad = torch.full_like(parameter, float(rank))
    clock = Clock(60)
    clock.spent = 10.0 * rank
    average(parts.parameters(), clock, count)
    grads = [parameter.grad.unique().tolist() for parameter in parts.parameters()]
    assert (grads, clock.spent) == ([[0.5], [0.5]], 5.0)
"""


def test_processes_average_gradients_and_clocks(tmp_path: Path) -> None:
    run_together(tmp_path, AVERAGING)


TRAINING = """
import sys
from pathlib import Path

import torch

from tests.training.models import CONFIG, random_codec
from training.nano import lm

lm.LM_CONFIG, lm.MIMI_CONFIG, lm.load_codec = CONFIG.lm, CONFIG.mimi, random_codec
run = lm.LMRun(minutes=0.03, batch=1, length=300, save_every=1000)
lm.train_lm(Path(sys.argv[1]), run, torch.device("cpu"))
"""


def test_processes_train_together(clips_folder: Path) -> None:
    run_together(clips_folder, TRAINING)
    assert load_state(clips_folder / "lm.pt")["spent"] >= 1.8


def test_exported_models_load_with_sharper_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lm, mimi = new_lm(CONFIG.lm), random_codec()
    write_models(tmp_path, CONFIG, lm, mimi, TOKENIZER)
    loaded = load_checkpoint(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    assert loaded.config == CONFIG
    for ours, theirs, rounding in ((lm, loaded.lm, 1e-2), (mimi, loaded.mimi, 1e-6)):
        expected = dict(ours.named_parameters())
        found = dict(theirs.named_parameters())
        assert found.keys() <= expected.keys()
        for name in expected.keys() - found.keys():
            packed = theirs.get_submodule(name.removesuffix(".weight"))
            assert isinstance(packed, PackedLinear)
            found[name] = weight_of(packed, expected[name].shape[1])
        for name, parameter in found.items():
            own = expected[name].detach()
            if name == TEXT_HEAD:
                own = own * TEXT_SHARPNESS
            torch.testing.assert_close(parameter, own, atol=1e-3, rtol=rounding)


def test_training_continues_from_a_finished_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lm, mimi = new_lm(CONFIG.lm), random_codec()
    write_models(tmp_path, CONFIG, lm, mimi, TOKENIZER)
    folder = tmp_path / "run"
    adopt(tmp_path, folder)
    for name, prefix, model, rounding in (("codec", "mimi", mimi, 1e-6), ("lm", "lm", lm, 1e-2)):
        parts = load_state(folder / f"{name}.pt")["parts"]
        for key, parameter in model.named_parameters():
            found = parts[f"{prefix}.{key}"]
            torch.testing.assert_close(found, parameter.detach(), atol=1e-3, rtol=rounding)
    assert (folder / "tokenizer.model").read_bytes() == TOKENIZER.read_bytes()
    with pytest.raises(FileExistsError, match=r"codec\.pt exists"):
        adopt(tmp_path, folder)


@pytest.mark.usefixtures("seconds_of_steps")
def test_only_the_decoder_changes_and_its_training_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    mimi = new_codec()
    parts = {f"mimi.{name}": value for name, value in mimi.state_dict().items()}
    save_state(tmp_path / "codec.pt", {"parts": parts})
    monkeypatch.setattr("training.nano.agent_speech.script_texts", lambda: ["One."])
    monkeypatch.setattr("training.nano.agent_speech.vocabulary", lambda: ("one", "two"))
    for voice in AGENT_VOICES:
        tone = torch.randint(-3000, 3000, (SAMPLE_RATE,), dtype=torch.int16)
        words = (("word", 0.0),)
        rows = [{"text": text, "pcm": tone, "words": words} for text in ("One.", "two people.")]
        save_state(tmp_path / "agent" / f"{voice}-0000.pt", {"utterances": rows})

    def train(seconds: int) -> dict[str, Any]:
        run = DecoderRun(minutes=seconds / 60, batch=1, frames=12, checked=1)
        train_decoder(tmp_path, run, torch.device("cpu"))
        return load_state(tmp_path / "decoder.pt")

    assert train(2)["step"] == 2
    assert train(3)["step"] == 3
    trained = dict(load_finished(tmp_path, torch.device("cpu")).named_parameters())
    for name, parameter in mimi.named_parameters():
        is_decoder = name.startswith(("upsample", "decoder")) or name.endswith("output_proj")
        if not is_decoder:
            assert torch.equal(trained[name], parameter), f"{name} determines codes"
    assert any(not torch.equal(trained[n], p) for n, p in mimi.named_parameters())
    own = dict(load_agent_codec(tmp_path, torch.device("cpu")).named_parameters())
    assert all(
        torch.equal(own[name], parameter) == name.endswith("centroids")
        for name, parameter in mimi.named_parameters()
        if name.startswith(("encoder.", "quantizer.semantic.centroids"))
    ), "the agent's encoder is another one"

    (tmp_path / "pool.pt").touch()
    assert train(5)["step"] == 5
    later = load_agent_codec(tmp_path, torch.device("cpu")).named_parameters()
    changed = {name for name, parameter in later if not torch.equal(parameter, own[name])}
    assert changed and all(
        name.startswith(("upsample", "decoder")) or name.endswith("output_proj") for name in changed
    ), "clips have been encoded: their codes stay"

    older = load_state(tmp_path / "decoder.pt")
    del older["agent_encoder"]
    save_state(tmp_path / "decoder.pt", older)
    with pytest.raises(StateMissing, match="delete it and run `decoder`"):
        load_agent_codec(tmp_path, torch.device("cpu"))
